"""Nearest class mean: a lumisection belongs to the run whose mean residual is nearest."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.closed_form.row_per_run import RowPerRun
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy


@register_strategy("ncm")
class NearestClassMean(RowPerRun):
    """Euclidean distance to the mean residual of each run, which has the variance 1 in every channel.

        score_k = -sum_c (r_c - m_kc)² / 2

    r_c: residual of channel c to the reference; m_kc: its mean in run k. It learns no metric: that is `slda`. Source: Mensink
    et al. 2013 (IEEE TPAMI 35:2624), the classifier that iCaRL puts on learnt features.
    """

    name = "ncm"
    arrays = ("mean",)
    channel_flops = 1

    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        return (self.reference.residuals(train.counts).mean(axis=0, dtype=np.float64).astype(np.float32),)

    def _scores(self, maps: Maps) -> np.ndarray:
        residuals = self.reference.residuals(maps.counts).astype(np.float64)
        means = self._rows["mean"].astype(np.float64)
        # |r - m|² without |r|², which all runs share.
        return np.asarray(residuals @ means.T - 0.5 * (means**2).sum(axis=1))
