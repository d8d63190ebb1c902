"""The response of each channel to pileup, common to two runs, and by how much the runs differ in it.

With a lumisection's exposure E and ratio z (`experiments.compare.luminosity`) the mean count of a channel is

    mu = E f(z) (1 - h) in run A,    mu = E f(z) (1 + h) in run B,

f a polynomial in z of the channel's own. The ratio of response is (1 + h) / (1 - h): h = -1 for a channel that died, h = 1 for
one that woke.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.polynomial.legendre import legvander

from dqmstream.experiments.compare.estimate import Estimate, moderate
from dqmstream.experiments.compare.luminosity import LuminosityRuler
from dqmstream.experiments.compare.samples import Sample

MIN_EXPOSURE = 1e-3
"""Of a lumisection, in variances where events are unknown (a mean one has 1): bright rings may be dark while others count."""

_MIN_VARIANCE = 0.25
"""Part of its model variance that h keeps at least, however little its blocks differ."""

_MIN_SHARE = 0.3
"""In variances p and 1 - p are at least this part of their means in both runs. Where a channel fires in nearly every event a
fit may put 1 - p anywhere near 0, and chance would make a lumisection weigh a thousand times too much."""


@dataclass(frozen=True, eq=False)
class SharedResponse:
    """The fitted response f of each channel, and its half difference h between the runs.

    low, high: range of the ratio. weights: coefficients of f, (basis, live). h, rho: (live,), rho the overdispersion. share:
    counts over E in both runs, (live,). spread: variance of a count over E if events are unknown, else 1, (live,). influence:
    what each block of lumisections contributes to h, (blocks, live), corrected for the fitted parameters; the sum of its
    squares is the variance of h, with `dof` degrees of freedom. model_error: error of h by the weights alone, (live,).
    """

    ruler: LuminosityRuler
    low: float
    high: float
    weights: np.ndarray
    h: np.ndarray
    share: np.ndarray
    rho: np.ndarray
    spread: np.ndarray
    influence: np.ndarray
    dof: int
    model_error: np.ndarray

    def estimate(self, testable: np.ndarray) -> Estimate:
        """h of each channel with its moderated error, inf for channels that are not testable. testable: bool, (live,)."""
        error, degrees = np.full_like(self.h, inf), np.ones_like(self.h)
        if testable.any():
            own = (self.influence[:, testable] ** 2).sum(axis=0)
            scale, degrees[testable] = moderate(own / self.model_error[testable] ** 2, self.dof)
            error[testable] = self.model_error[testable] * np.sqrt(np.maximum(scale, _MIN_VARIANCE))
        return Estimate(self.h, error, degrees)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """f at the lower and upper quarter of the ratio's range, (live,) each."""
        quarters = self.low + (self.high - self.low) * np.array([0.25, 0.75])
        low, high = basis(quarters, self.low, self.high, len(self.weights)) @ self.weights
        return low, high

    def expected(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """E f(z), halfway between the expected counts of the two runs, and the variance of a count: float64, (n, live) each."""
        exposure, ratio = self.ruler.exposure_and_ratio(sample)
        middle = exposure[:, None] * (basis(ratio, self.low, self.high, len(self.weights)) @ self.weights)
        if not self.ruler.counts_events:
            return middle, np.maximum(exposure, MIN_EXPOSURE)[:, None] * self.spread
        return middle, beta_binomial(middle, exposure, self.share, self.rho)


def beta_binomial(middle: np.ndarray, events: np.ndarray, share: np.ndarray, rho: np.ndarray | float) -> np.ndarray:
    """Variance N p (1 - p) (1 + (N - 1) rho) of counts with means `middle`, (n, live), in events, (n,).

    share: mean of p, (live,), which bounds p and 1 - p from below.
    """
    many = events[:, None]
    p = np.clip(middle / many, _MIN_SHARE * share, 1 - _MIN_SHARE * (1 - share))
    return np.asarray(many * p * (1 - p) * (1 + (many - 1) * rho))


def basis(ratio: np.ndarray, low: float, high: float, terms: int) -> np.ndarray:
    """Legendre polynomials of the ratio on low..high, (n, terms); a ratio outside is taken at the nearer end."""
    if terms == 1:
        return np.ones((len(ratio), 1))
    return legvander(np.clip(2 * (ratio - low) / (high - low) - 1, -1.0, 1.0), terms - 1)
