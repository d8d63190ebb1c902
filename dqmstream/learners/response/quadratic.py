"""The quadratic response: counts as a polynomial in a/b, for data that do not follow the saturation law (scaled counts)."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.base import (
    LEAST_SILENCE,
    MOST_SILENCE,
    NEAR,
    ROUNDING,
    WINDOW_FACTOR,
    Expected,
    Response,
)
from dqmstream.learners.response.rings import medians

STEADY = 5e-3
"""Relative scatter of a/b in a run below which it is noise, and no slope is fitted."""

_FAILED = 0.25
"""A channel whose mean count differs from the reference run's by a larger share takes no slope from a later run."""

_OUTLYING = 8.0
"""The same where its slope differs from its ring's median by more than this many median deviations of the ring."""


class Quadratic(Response):
    """e = b (w0 + w1 z + w2 z²), where z is the ratio a/b standardised on the reference run.

    All terms grow with the number of events, as counts do, so a truncated lumisection needs no extrapolation; the standard
    deviation grows with sqrt(b). Outside the fitted range of a/b the curve continues along its tangent.

    profile: mean counts of the reference run, (live,). ratio: mean, standard deviation (inf where no slope was fitted), lowest
    and highest a/b of the reference run, (4,). weights: w0, w1, w2, (3, live). spread: standard deviation of a count at b = 1,
    (live,). full: probability to fire in the reference run, (live,).
    """

    kind = "quadratic"
    arrays = ("profile", "ratio", "weights", "spread", "full")

    def __init__(
        self, profile: np.ndarray, ratio: np.ndarray, weights: np.ndarray, spread: np.ndarray, full: np.ndarray
    ) -> None:
        self.profile, self.ratio, self.weights, self.spread, self.full = profile, ratio, weights, spread, full

    @classmethod
    def fit(
        cls, counts: np.ndarray, conditions: np.ndarray, profile: np.ndarray, ring: np.ndarray
    ) -> tuple[Quadratic, np.ndarray]:
        """Weighted least squares on a run's counts (n, live); also returns the residual variance at b = 1, (live,)."""
        share = conditions[:, 0] / conditions[:, 1]
        moves = share.std() > STEADY * share.mean()
        ratio = np.array([share.mean(), share.std() if moves else np.inf, share.min(), share.max()])
        root_b = np.sqrt(conditions[:, 1:])
        features, target = _features(conditions, ratio) / root_b, counts / root_b
        weights, _, rank, _ = np.linalg.lstsq(features, target, rcond=1e-6)
        left_over = ((target - features @ weights) ** 2).sum(axis=0) / max(len(target) - int(rank), 1)
        spread = np.maximum(np.sqrt(left_over), ROUNDING * profile)
        return cls(profile, ratio, weights, spread, 1 - _silence(spread, profile, ring)), left_over

    def expected(self, conditions: np.ndarray) -> Expected:
        b = conditions[:, 1:]
        counts = np.maximum(_features(conditions, self.ratio) @ self.weights, 0.0)
        share = np.divide(counts, b * self.profile, out=np.zeros_like(counts), where=b > 0)
        fired = np.clip(self.full * share, 1 - MOST_SILENCE, 1 - LEAST_SILENCE)
        deviation = self.spread * np.sqrt(np.maximum(b, ROUNDING))
        rows = np.flatnonzero(self._outside(conditions))
        if rows.size:
            deviation[rows] = np.hypot(deviation[rows], WINDOW_FACTOR * self._error_outside(conditions[rows]))
        return Expected(counts, deviation, fired)

    def _outside(self, conditions: np.ndarray) -> np.ndarray:
        """Distance of a/b from the fitted range, with its sign, (n,); 0 inside, and where b is 0."""
        a, b = conditions[:, 0], conditions[:, 1]
        share = np.divide(a, b, out=np.full_like(a, self.ratio[0]), where=b > 0)
        return np.asarray(share - np.clip(share, self.ratio[2], self.ratio[3]))

    def _error_outside(self, conditions: np.ndarray) -> np.ndarray:
        """Systematic error of the counts outside the fitted range, (n, live).

        That of the tangent, w2 z²; where no slope was fitted, the whole change that a count proportional to a would show.
        """
        b, outside = conditions[:, 1:], self._outside(conditions)[:, None]
        if not np.isfinite(self.ratio[1]):
            return np.asarray(b * self.profile * np.abs(outside) / self.ratio[0])
        return np.asarray(b * np.abs(self.weights[2]) * (outside / self.ratio[1]) ** 2)

    @property
    def fitted_range(self) -> tuple[float, float]:
        return float(self.ratio[2] / self.ratio[0]), float(self.ratio[3] / self.ratio[0])

    def with_slopes_of(self, later: Quadratic, ring: np.ndarray) -> Quadratic:
        """This response, fitted without a slope, with the slopes of a later run; unchanged under its own conditions.

        A channel that failed in the later run takes the median slope of its ring. ring: number of each channel's ring, (live,).
        """
        mean = self.ratio[0]
        there = later.expected(np.array([[mean, 1.0]])).counts[0]
        share = np.divide(later.weights, there, out=np.zeros_like(later.weights), where=there > 0)
        usual = medians(share, ring)
        off = np.abs(share[1] - usual[1])
        failed = (np.abs(there / self.profile - 1) > _FAILED) | (off > _OUTLYING * medians(off, ring))
        ratio = np.array([*later.ratio[:2], min(self.ratio[2], later.ratio[2]), max(self.ratio[3], later.ratio[3])])
        return Quadratic(self.profile, ratio, self.profile * np.where(failed, usual, share), self.spread, self.full)

    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        return np.abs(self._outside(conditions)) > NEAR * self.ratio[0]


def _silence(spread: np.ndarray, profile: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Probability of silence in the reference run, 1 - p, one value a ring at the places of its channels, (live,).

    A count of N events has mean N p and variance N p (1 - p): their quotient is 1 - p, whatever N is.
    """
    return np.clip(medians(spread**2 / profile, ring), LEAST_SILENCE, MOST_SILENCE)


def _features(conditions: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """b, b z and b z² of conditions (n, 2): (n, 3). Outside the fitted range z² is replaced by its tangent."""
    mean, deviation, low, high = ratio
    a, b = conditions[:, 0], conditions[:, 1]
    # Where b is 0 there is no ratio; all terms are 0 there, whatever z is.
    share = np.divide(a, b, out=np.full_like(a, mean), where=b > 0)
    z = (share - mean) / deviation
    inside = (np.clip(share, low, high) - mean) / deviation
    return np.stack([b, b * z, b * inside * (2 * z - inside)], axis=1)
