"""Streaming linear discriminant analysis: a mean for each run, and one covariance for all runs.

    score_k = r' Λ m_k - m_k' Λ m_k / 2,    Λ = ((1 - ε) Σ + ε I)⁻¹

    r      residuals to the reference
    m_k    their mean in run k
    Σ      their covariance about the mean of their own run, over all runs
    ε      shrinkage (`SHRINKAGE`)

Source: Hayes and Kanan 2020 (arXiv:1909.01520); here a run is added at once, there a sample.

Σ of 932 channels takes 3.5 MB, more than the budget. Kept are its diagonal, exact, and a sketch of the rest: frequent
directions (Liberty 2013, arXiv:1206.0594), a matrix B with a fixed number of rows such that B'B approximates the sum of
squares. What the sketch brings: docs/decisions/2026-11-29-closed-forms.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.class_means import ClassMeans
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

SHRINKAGE = 0.1
"""ε. Residuals are in standard deviations of the reference run, so variances are shrunk to 1."""

SHARE_COVARIANCE = 0.125
"""Share of the budget for Σ. With 1 MB: 32 rows of the sketch, and means of 467 runs before runs are merged."""

_ARRAYS = ("sketch", "squares", "lumisections")


@register_strategy("slda")
class Slda(Incremental):
    """Learns a run in one pass; where the budget of bytes is full, the two nearest means become one."""

    name = "slda"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of means and covariance, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes, shrinkage=SHRINKAGE)
        self._budget_bytes = memory_bytes
        self._allot(0)

    def _allot(self, channels: int) -> None:
        """Empty arrays that fit the budget for this number of channels; the means get what the covariance leaves."""
        rows = int(SHARE_COVARIANCE * self._budget_bytes) // (4 * channels) - 1 if channels else 0
        self._sketch = np.zeros((max(rows, 0), channels), dtype=np.float32)
        self._squares = np.zeros(channels, dtype=np.float32)
        self._lumisections = 0
        self.means = ClassMeans(self._budget_bytes - self._sketch.nbytes - self._squares.nbytes, np.float16)
        self._solved: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def classes(self) -> int:
        return len(self.means)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        residuals = self.reference.residuals(train.counts).astype(np.float64)
        mean = residuals.mean(axis=0)
        deviations = residuals - mean
        if experience == 0:
            self._allot(mean.size)
        self.means.add(mean)
        self._squares += (deviations**2).sum(axis=0)
        self._sketch = sketched(self._sketch, deviations)
        self._lumisections += len(train)
        self._solved = None
        log = LearnLog(samples=len(train), flops=self.reference.response_flops(len(train)), notes=self.means.notes)
        # Sums, and a singular value decomposition of sketch and run: about 6 x the square of their rows for a channel.
        log.flops += 5.0 * residuals.size + 6.0 * (len(self._sketch) + len(train)) ** 2 * mean.size
        return log

    def covariance(self) -> np.ndarray:
        """Σ, from the sketch and the exact diagonal: float64, (live, live)."""
        sketch = self._sketch.astype(np.float64)
        together = sketch.T @ sketch
        own = np.maximum(self._squares - np.diag(together), 0.0)
        return np.asarray((together + np.diag(own)) / self._lumisections)

    def _scores(self, maps: Maps) -> np.ndarray:
        residuals = self.reference.residuals(maps.counts).astype(np.float64)
        if self._solved is None:
            means = self.means.rows.astype(np.float64)
            shrunk = (1 - SHRINKAGE) * self.covariance() + SHRINKAGE * np.eye(means.shape[1])
            weights = np.linalg.solve(shrunk, means.T)
            self._solved = weights, -0.5 * np.einsum("rf,fr->r", means, weights)
        weights, bias = self._solved
        return np.asarray((residuals @ weights + bias)[:, self.means.row_of_class])

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)} | self._reference_state()
        if self.classes:
            kept = (self._sketch.copy(), self._squares.copy(), np.array(self._lumisections))
            state |= dict(zip(_ARRAYS, kept, strict=True)) | prefixed("means", self.means.state())
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        self._restore_reference(state, known)
        channels = int(self.reference.live.sum()) if known else 0
        self._allot(channels)
        if known:
            missing = [name for name in _ARRAYS if name not in state]
            if missing:
                raise StateError(f"the state of {self.name} lacks {', '.join(missing)}; it is damaged")
            if state["sketch"].shape != self._sketch.shape or state["squares"].shape != self._squares.shape:
                raise StateError(f"the state's covariance is not of {channels} channels and this budget; it is damaged")
            self._sketch, self._squares = np.array(state["sketch"]), np.array(state["squares"])
            self._lumisections = int(state["lumisections"])
            self.means.restore(within(state, "means"), channels)

    def memory_bytes(self) -> int:
        return self.means.memory_bytes() + self._sketch.nbytes + self._squares.nbytes

    def state_bytes(self) -> int:
        return self._reference_bytes()


def sketched(sketch: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Add rows A, (n, features), to a sketch B, float32, (l, features): the new sketch, of the same shape.

    The squared singular values of [B; A] are lowered by the (l+1)-th. So 0 <= |A x|² - |B x|² <= |A|² / l for every unit
    vector x, with A all rows added so far and |A| their Frobenius norm.
    """
    kept = len(sketch)
    if kept == 0:
        return sketch
    _, value, direction = np.linalg.svd(np.concatenate([sketch, rows]), full_matrices=False)
    fallen = value[kept] ** 2 if len(value) > kept else 0.0
    stretched = np.sqrt(np.maximum(value[:kept] ** 2 - fallen, 0.0))[:, None] * direction[:kept]
    out = np.zeros_like(sketch)
    out[: len(stretched)] = stretched
    return out
