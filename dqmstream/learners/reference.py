"""What each channel should count under a lumisection's own conditions, as the first run taught it.

Luminosity moves all channels together, and must not be mistaken for a change of the detector. Two numbers of the same map
stand for it: a, from the rings |ieta| 19-23, which rise with pileup, and b, from the rings |ieta| 26-28, which are nearly
full and follow the number of events. The expected count of a channel is

    e = b (w0 + w1 z + w2 z²),    z = a/b, standardised on the reference run,

fitted by weighted least squares on the reference run's train part. That is the quadratic in (a, b) whose terms all grow
with the number of events, as counts do (a, b, a²/b): a lumisection cut short to a tenth needs no extrapolation, and the
spread of a count grows like sqrt(b). On eight runs that drift by 0.4 % a channel the gain map's accuracy rose from .73 with
the full quadratic (1, a, b, a², ab, b²) and a constant spread to .84.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.strategy import Maps
from dqmstream.lumisection import IETA, IPHI, readout_box

CLIP = 10.0
"""Residuals are cut at this many standard deviations: beyond it a channel is dead or hot, and how much no longer matters."""

A_RINGS, B_RINGS = (19, 23), (26, 28)

_STEADY = 5e-3
"""A ratio a/b that moves by less than this in the reference run is noise, and teaches no slope."""

_RELATIVE_FLOOR = 1e-3
"""A response is never known better than to a per mille: a smaller spread is rounding, or too few lumisections."""

_CHUNK = 4096
_ARRAYS = ("live", "profile", "ratio", "weights", "spread")


class Reference:
    """Expected counts and spread of the live channels.

    live: bool, shape (depth, 64, 72), the cells that counted anything in the reference run; all else is left out.
    """

    def __init__(
        self, live: np.ndarray, profile: np.ndarray, ratio: np.ndarray, weights: np.ndarray, spread: np.ndarray
    ) -> None:
        """profile: mean counts, (live,). ratio: mean, deviation, lowest and highest a/b of the reference run, (4,).

        weights: (3, live). spread: deviation of a count at b = 1, (live,).
        """
        self.live = live
        self.spread = spread
        self.profile = profile
        self._ratio = ratio
        self._weights = weights
        self._boxes = tuple(_by_box(live, cells, profile) for cells in _condition_cells(live, profile))

    @classmethod
    def fit(cls, maps: Maps) -> Reference:
        """Fit on the lumisections of a run (its train part). Raises InputError if they hold no counts at all."""
        live = np.asarray((maps.counts > 0).any(axis=0))
        if not live.any():
            raise InputError("the reference run holds no counts to learn from; start with a run that was read out")
        counts = maps.counts[:, live].astype(np.float64)
        profile = counts.mean(axis=0)
        unfitted = cls(live, profile, np.zeros(4), np.zeros((3, profile.size)), np.ones(profile.size))
        conditions = unfitted._conditions(counts)
        lit = conditions[:, 1] > 0
        counts, conditions = counts[lit], conditions[lit]
        if not lit.any():
            raise InputError("the reference run is dark in most readout boxes; start with a run that was read out")
        ratio = conditions[:, 0] / conditions[:, 1]
        moves = ratio.std() > _STEADY * ratio.mean()
        fitted = np.array([ratio.mean(), ratio.std() if moves else np.inf, ratio.min(), ratio.max()])
        root_b = np.sqrt(conditions[:, 1:])
        features, target = _features(conditions, fitted) / root_b, counts / root_b
        weights, _, rank, _ = np.linalg.lstsq(features, target, rcond=1e-6)
        left_over = target - features @ weights
        spread = np.sqrt((left_over**2).sum(axis=0) / max(len(target) - int(rank), 1))
        return cls(live, profile, fitted, weights, np.maximum(spread, _RELATIVE_FLOOR * profile))

    def _conditions(self, counts: np.ndarray) -> np.ndarray:
        # A median over readout boxes: in a mean one dead box moved the residuals of all other channels by 5 deviations.
        return np.stack([np.median(counts[:, cells] @ share, axis=1) for cells, share in self._boxes], axis=1)

    def conditions(self, counts: np.ndarray) -> np.ndarray:
        """a and b of each lumisection, relative to the reference run: float64, shape (n, 2), from maps (n, depth, 64, 72)."""
        return self._conditions(counts[:, self.live].astype(np.float64))

    def expected(self, counts: np.ndarray) -> np.ndarray:
        """Expected counts under the conditions that the maps themselves show: float64, shape (n, live)."""
        return self.response(counts[:, self.live])[0]

    def response(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected counts and their deviation, float64, both (n, live), from the counts of the live channels (n, live)."""
        conditions = self._conditions(counts.astype(np.float64))
        expected = np.maximum(_features(conditions, self._ratio) @ self._weights, 0.0)
        return expected, self.spread * np.sqrt(np.maximum(conditions[:, 1:], _RELATIVE_FLOOR))

    def residuals(self, counts: np.ndarray) -> np.ndarray:
        """(count - expected) / deviation, cut at ±10: float32, shape (n, live), from maps (n, depth, 64, 72)."""
        return self.residuals_of_live(counts[:, self.live])

    def residuals_of_live(self, counts: np.ndarray) -> np.ndarray:
        """The same from the counts of the live channels, shape (n, live), which is what memories keep."""
        out = np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), _CHUNK):
            part = counts[start : start + _CHUNK].astype(np.float64)
            expected, deviation = self.response(part)
            out[start : start + _CHUNK] = np.clip((part - expected) / deviation, -CLIP, CLIP)
        return out

    def response_flops(self, lumisections: int) -> float:
        """Floating-point operations of `response` and of the residual, for so many lumisections.

        2 cells boxes for each of the two conditions (a product of matrices), and 10 a channel: 6 for the three terms of the
        expectation, 2 for the deviation, 2 for the residual.
        """
        conditions = sum(2 * share.size for _, share in self._boxes)
        return float(lumisections * (conditions + 10 * self.spread.size))

    def fit_flops(self, lumisections: int) -> float:
        """Floating-point operations of `fit` on so many lumisections, by least squares of three terms in each channel.

        Conditions as above, and 16 a channel and lumisection: 6 for the right-hand side, 6 for the fitted values, 4 for what
        is left over, its square and their sum.
        """
        conditions = sum(2 * share.size for _, share in self._boxes)
        return float(lumisections * (conditions + 16 * self.spread.size))

    def to_map(self, values: np.ndarray) -> np.ndarray:
        """Values of the live channels (n, live) put back on the map, zero elsewhere: shape (n, depth, 64, 72)."""
        out = np.zeros((len(values), *self.live.shape), dtype=values.dtype)
        out[:, self.live] = values
        return out

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        arrays = (self.live, self.profile, self._ratio, self._weights, self.spread)
        return dict(zip(_ARRAYS, arrays, strict=True))

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Reference:
        """Take back what `state` gave. Raises StateError if an array is missing."""
        missing = [name for name in _ARRAYS if name not in state]
        if missing:
            raise StateError(f"the state's reference lacks {', '.join(missing)}; it is damaged or of another version")
        return cls(*(np.array(state[name]) for name in _ARRAYS))


def fitted_gains(residual: np.ndarray, leverage: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain of each channel by least squares, its error (inf where nothing is known) and its information 1/error².

    residual: (n, channels), in deviations. leverage: by how many of them the count moves where the gain is 1, (n, channels).
    """
    information = (leverage**2).sum(axis=0)
    known = information > 0
    gain = np.divide((leverage * residual).sum(axis=0), information, out=np.zeros(len(information)), where=known)
    error = np.divide(1.0, np.sqrt(information), out=np.full(len(information), np.inf), where=known)
    return gain, error, information


def _features(conditions: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """b, b z and b z² of conditions (n, 2): shape (n, 3). Beyond the reference run's own range z² goes on as its tangent."""
    mean, deviation, low, high = ratio
    a, b = conditions[:, 0], conditions[:, 1]
    # Without light there is no ratio; b = 0 makes every term zero whatever z is.
    share = np.divide(a, b, out=np.full_like(a, mean), where=b > 0)
    z = (share - mean) / deviation
    inside = (np.clip(share, low, high) - mean) / deviation
    return np.stack([b, b * z, b * inside * (2 * z - inside)], axis=1)


def _condition_cells(live: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, among the live cells, of those that make a and b.

    Where a ring group holds no live cell (another part of the detector), a is the dimmer and b the brighter half of the
    live cells, by their mean count: dim channels rise with pileup, bright ones are full and follow the number of events.
    """
    ring = np.abs(IETA)[np.nonzero(live)[1]]
    groups = [np.flatnonzero((ring >= low) & (ring <= high)) for low, high in (A_RINGS, B_RINGS)]
    if all(group.size for group in groups):
        return groups[0], groups[1]
    order = np.argsort(profile, kind="stable")
    return order[: (order.size + 1) // 2], order[order.size // 2 :]


def _by_box(live: np.ndarray, cells: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells, and a matrix (cells, boxes) that makes their counts each readout box's total over its mean total."""
    _, row, column = np.nonzero(live)
    box = readout_box(IETA[row[cells]], IPHI[column[cells]])
    share = (box[:, None] == np.unique(box)).astype(np.float64)
    return cells, share / (profile[cells] @ share)
