"""AutoDQM's beta-binomial pulls of a map against reference runs, with its cuts at a chi² of 10 and a pull of 10.

A channel has r of the R counts of a reference run. Of D counts in a map it has x with the likelihood of a beta-binomial with D
trials, α = r + 1, β = R - r + 1, where r and R are first scaled down by (1 + (r t²)²)^-½: the relative uncertainty of a
reference is at least t = .01. L is this likelihood divided by that of the most probable count, averaged over the references.
The pull is given by χ²_1(pull²) = L, χ² is the mean of the squared pulls, and the largest pull is corrected for the number of
channels. A histogram is an outlier if χ² > 10 or the largest |pull| > 10.

Source: github.com/AutoDQM/AutoDQM, plugins/beta_binomial.py; Brinkerhoff et al., arXiv:2501.13789. The method is made for
histograms of whole runs. Here it is applied to single lumisections; only the total is scaled to luminosity.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm

from dqmstream.errors import InputError
from dqmstream.experiments.faults.cost import Cost
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.fault_filter import Suspicion

CHI2_CUT = PULL_CUT = 10.0
TOLERANCE = 0.01
REFERENCES = 4
"""Number of reference runs, the last ones; AutoDQM uses one to eight."""

_SMALLEST = 1e-300


class BetaBinomial:
    """The detector: references are the good lumisections of the last runs. A score of 1 is AutoDQM's cut."""

    def __init__(self) -> None:
        self._live: np.ndarray | None = None
        self._references: list[np.ndarray] = []

    @property
    def live(self) -> np.ndarray:
        if self._live is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._live

    def learn(self, good: Maps) -> None:
        if self._live is None:
            self._live = np.asarray((good.counts > 0).any(axis=0))
        self._references = [*self._references, good.counts[:, self._live].sum(axis=0, dtype=np.float64)][-REFERENCES:]

    def look(self, maps: Maps) -> Suspicion:
        pull = pulls(np.rint(maps.counts[:, self.live].astype(np.float64)), np.stack(self._references))
        square = (pull**2).mean(axis=1)
        score = np.maximum(square / CHI2_CUT, _corrected(pull.max(axis=1), pull.shape[1]) / PULL_CUT)
        return Suspicion(score, pull)

    def cost(self) -> Cost:
        return Cost.of_arrays([self.live, *self._references])


def pulls(counts: np.ndarray, references: np.ndarray) -> np.ndarray:
    """|pull| of each count, (n, channels), against references (runs, channels)."""
    total = counts.sum(axis=1, keepdims=True)
    likelihood = np.zeros(counts.shape)
    for reference in references:
        scale = 1 / np.sqrt(1 + (reference * TOLERANCE**2) ** 2)
        alpha, beta = np.round(reference * scale) + 1, np.round(reference.sum() * scale) - np.round(reference * scale) + 1
        mean = total * (reference / reference.sum())
        likely = np.maximum(
            _log_weight(np.minimum(np.ceil(mean), total), total, alpha, beta), _log_weight(np.floor(mean), total, alpha, beta)
        )
        likelihood += np.exp(np.minimum(_log_weight(counts, total, alpha, beta) - likely, 0.0))
    return _deviations(likelihood / len(references))


def _log_weight(k: np.ndarray, n: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Terms of the beta-binomial log-likelihood that depend on k."""
    return np.asarray(gammaln(k + alpha) + gammaln(n - k + beta) - gammaln(k + 1) - gammaln(n - k + 1))


def _deviations(tail: np.ndarray) -> np.ndarray:
    return np.asarray(norm.isf(np.clip(tail, _SMALLEST, 1.0) / 2))  # square root of a χ²_1 quantile


def _corrected(largest: np.ndarray, channels: int) -> np.ndarray:
    """The largest of `channels` pulls, converted to the deviations of its probability to occur in any of them."""
    one = 2 * norm.sf(np.minimum(largest, 37.0))
    return _deviations(-np.expm1(channels * np.log1p(-np.minimum(one, 1 - 1e-12))))
