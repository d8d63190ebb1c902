"""What `closed_form.modes` keeps of each run: factors on the variances, variances of the moving parts, and free modes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.pileup_slopes import SLOPES
from dqmstream.learners.response.rings import ring_medians

_CLEAR = 5.5
"""Standard errors by which a channel's variance must differ from the usual one to be kept."""

_CLEAR_RING = 4.0
"""The same for a ring; its error is the difference between the two halves of the run."""

_LEAST_RING_ERROR = 0.015

_STEP = 1 / 16
"""Step of the logarithm (base 2) of a factor, as it is kept."""

_MOST_CHANGE = 2.0
"""A run changes the usual variance of a channel by this factor at most, so that one bad run does not set it."""

_ARRAYS = (
    "pooled", "lumisections", "factors", "factor_run", "moving", "mean", "modes", "mode_run", "mode_strength", "slopes",
    "slope_run",
)  # fmt: skip


class ModeRows:
    """Rows of all runs.

    pooled: usual variance of each channel over all runs, (live,). mean: mean of x and x² (`response.pileup_error`) in each run,
    (classes, 2).
    """

    def __init__(self) -> None:
        self.pooled = np.zeros(0, dtype=np.float32)
        self._lumisections = 0
        self._factors, self._factor_run = np.zeros((0, 0), dtype=np.int8), np.zeros(0, dtype=np.int32)
        self._moving = np.zeros((0, 0), dtype=np.float32)
        self.mean = np.zeros((0, 2), dtype=np.float32)
        self._modes = np.zeros((0, 0), dtype=np.float16)
        self._mode_run = np.zeros(0, dtype=np.int32)
        self._mode_strength = np.zeros(0, dtype=np.float32)
        self._slopes, self._slope_run = np.zeros(0, SLOPES), np.zeros(0, dtype=np.int32)

    @property
    def classes(self) -> int:
        return len(self.mean)

    def pool(self, variance: np.ndarray, lumisections: int, ring: np.ndarray) -> np.ndarray:
        """Add a run's variances, (live,), to the usual ones, and return these. A channel without scatter has its ring's."""
        of_ring = ring_medians(variance, ring)[ring]
        usual = self.pooled if self.pooled.size else of_ring
        usual = np.where(usual > 0, usual, np.where(of_ring > 0, of_ring, 1.0))
        bounded = np.clip(variance, usual / _MOST_CHANGE, usual * _MOST_CHANGE)
        total = self._lumisections + lumisections
        self.pooled = (usual + (bounded - usual) * (lumisections / total)).astype(np.float32)
        self._lumisections = total
        return self.pooled

    def add(self, factor: np.ndarray, moving: np.ndarray, modes: np.ndarray, mean: np.ndarray, slopes: np.ndarray) -> None:
        """Add a run.

        factor: (live,). moving: variances, (parts,). modes: whitened free modes, (live, m). mean: (2,). slopes: with pileup
        (`closed_form.pileup_slopes`), (slopes,).
        """
        code = np.clip(np.rint(np.log2(factor) / _STEP), -127, 127).astype(np.int8)
        empty = not self.classes
        run = np.full(modes.shape[1], self.classes, dtype=np.int32)
        row = moving.astype(np.float32)[None]
        if code.any():
            self._factors = code[None] if not self._factors.size else np.concatenate([self._factors, code[None]])
            self._factor_run = np.append(self._factor_run, np.int32(self.classes))
        self._moving = row if empty else np.concatenate([self._moving, row])
        self.mean = np.concatenate([self.mean, mean.astype(np.float32)[None]])
        self._slope_run = np.append(self._slope_run, np.full(len(slopes), self.classes - 1, dtype=np.int32))
        self._slopes = np.concatenate([self._slopes, slopes])
        columns = modes.T.astype(np.float16)
        self._modes = columns if not self._modes.size else np.concatenate([self._modes, columns])
        self._mode_run = np.append(self._mode_run, run)
        self._mode_strength = np.append(self._mode_strength, (modes**2).sum(axis=0).astype(np.float32))

    def fit(self, budget_bytes: int) -> None:
        """Drop the weakest free modes, then the factors of the runs that differ least, until all fits the budget."""
        while len(self._mode_run) and self.memory_bytes() > budget_bytes:
            kept = np.delete(np.arange(len(self._mode_run)), int(self._mode_strength.argmin()))
            self._modes, self._mode_run = self._modes[kept], self._mode_run[kept]
            self._mode_strength = self._mode_strength[kept]

        while len(self._factor_run) and self.memory_bytes() > budget_bytes:
            least = int(np.abs(self._factors.astype(np.int64)).sum(axis=1).argmin())
            self._factors = np.delete(self._factors, least, axis=0)
            self._factor_run = np.delete(self._factor_run, least)

    def of(self, run: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Factors (live,), variances of the moving parts (parts,), and free modes (live, m) of a run."""
        row = np.flatnonzero(self._factor_run == run)
        code = self._factors[row[0]] if row.size else np.zeros(len(self.pooled), dtype=np.int8)
        return (
            np.exp2(code * _STEP),
            self._moving[run].astype(np.float64),
            self._modes[self._mode_run == run].astype(np.float64).T,
        )

    def slopes_of(self, run: int) -> np.ndarray:
        """Slopes of a run with pileup: (slopes,)."""
        return np.asarray(self._slopes[self._slope_run == run])

    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in self.state().values())

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        values: tuple[np.ndarray, ...] = (
            self.pooled, np.array(self._lumisections), self._factors, self._factor_run, self._moving, self.mean, self._modes,
            self._mode_run, self._mode_strength, self._slopes.view(np.uint8), self._slope_run,
        )  # fmt: skip
        return {name: value.copy() for name, value in zip(_ARRAYS, values, strict=True)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if an array is missing."""
        missing = [name for name in _ARRAYS if name not in state]
        if missing:
            raise StateError(f"the state of modes lacks {', '.join(missing)}; it is damaged")
        found = [np.array(state[name]) for name in _ARRAYS]
        self.pooled, self._lumisections, self._factors, self._factor_run, self._moving = found[0], int(found[1]), *found[2:5]
        self.mean, self._modes, self._mode_run, self._mode_strength = found[5:9]
        self._slopes, self._slope_run = found[9].view(SLOPES), found[10]


def ring_and_channel_factors(residual: np.ndarray, pooled: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Factors on the usual variances in a run, (live,): 1 unless a ring, or a channel beyond its ring, clearly differs.

    residual: (n, live), means removed. pooled: usual variances, (live,). ring: number of each channel's ring, (live,).
    """
    n = len(residual)
    if n < 4:
        return np.ones(len(pooled))
    halves = np.stack([ring_medians((half**2).mean(axis=0) / pooled, ring) for half in np.array_split(residual, 2)])
    change = halves.mean(axis=0) - 1
    error = np.maximum(np.abs(halves[0] - halves[1]) / 2, _LEAST_RING_ERROR + 2 / n)
    of_ring = np.where(np.abs(change) > _CLEAR_RING * error, 1 + change, 1.0)[ring]
    ratio = (residual**2).sum(axis=0) / max(n - 1, 1) / (pooled * of_ring)
    # The cube root of a variance is nearly normal (Wilson and Hilferty 1931).
    spread = 2 / (9 * max(n - 1, 1))
    surprise = (np.cbrt(np.maximum(ratio, 1e-6)) - (1 - spread)) / np.sqrt(spread)
    middle = np.median(surprise)
    surprise = (surprise - middle) / max(1.0, 1.4826 * float(np.median(np.abs(surprise - middle))))
    return np.asarray(of_ring * np.where(np.abs(surprise) > _CLEAR, np.clip(ratio, 1e-2, 1e2), 1.0))
