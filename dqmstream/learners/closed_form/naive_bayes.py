"""Naive Bayes: mean and variance of each channel's residual in each run, all channels independent."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.closed_form.row_per_run import RowPerRun
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy


@register_strategy("naive_bayes")
class NaiveBayes(RowPerRun):
    """Independent Gaussians for the residuals r_c of the channels to the reference.

        score_k = -sum_c (log v_kc + (r_c - m_kc)² / v_kc) / 2

    m_kc, v_kc: mean and variance of r_c in run k. A variance from n lumisections is shrunk to 1, that of the reference, with
    the weight of `PRIOR` lumisections; unshrunk, 200 lumisections leave 10 % of noise in every channel's variance.
    """

    name = "naive_bayes"
    arrays = ("mean", "variance")
    channel_flops = 4  # the sum; difference, square and their sum
    PRIOR = 200.0

    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        residuals = self.reference.residuals(train.counts).astype(np.float64)
        mean = residuals.mean(axis=0)
        squares = ((residuals - mean) ** 2).sum(axis=0)
        return mean.astype(np.float32), ((squares + self.PRIOR) / (len(train) + self.PRIOR)).astype(np.float32)

    def _scores(self, maps: Maps) -> np.ndarray:
        residuals = self.reference.residuals(maps.counts).astype(np.float64)
        scores = np.empty((len(maps), self.classes))
        for k, (mean, variance) in enumerate(zip(self._rows["mean"], self._rows["variance"], strict=True)):
            scores[:, k] = -0.5 * ((residuals - mean) ** 2 / variance + np.log(variance)).sum(axis=1)
        return scores
