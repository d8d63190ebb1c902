"""Ring means: what luminosity alone says about a run, as a lower bound for every other strategy."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.closed_form.row_per_run import RowPerRun
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy

_LEAST_VARIANCE = 1e-6
"""Added to the variances of a run: constant conditions would otherwise make it infinitely sure of itself."""


@register_strategy("ring_means")
class RingMeans(RowPerRun):
    """A Gaussian with full covariance for each run, on the conditions c = (a, b) of a lumisection (`response.base`).

        score_k = -(log det S_k + (c - m_k)ᵀ S_k⁻¹ (c - m_k)) / 2

    m_k, S_k: mean and covariance of c in run k. This is quadratic discriminant analysis with equal priors.
    """

    name = "ring_means"
    arrays = ("mean", "covariance")
    channel_flops = 0  # two numbers a lumisection: 14 operations beside the thousands for a and b

    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        conditions = self.reference.conditions(train.counts)
        deviations = conditions - conditions.mean(axis=0)
        covariance = deviations.T @ deviations / max(len(train) - 1, 1)
        return conditions.mean(axis=0), covariance + _LEAST_VARIANCE * np.eye(2)

    def _scores(self, maps: Maps) -> np.ndarray:
        deviations = self.reference.conditions(maps.counts)[:, None, :] - self._rows["mean"]
        inverse = np.linalg.inv(self._rows["covariance"])
        distance = np.einsum("nki,kij,nkj->nk", deviations, inverse, deviations)
        return -0.5 * (distance + np.linalg.slogdet(self._rows["covariance"])[1])
