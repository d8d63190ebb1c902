"""The gain map: for each run, by how much each channel counts more or less than in the reference run."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.closed_form.row_per_run import RowPerRun
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.response.reference import CLIP


@register_strategy("gain_map")
class GainMap(RowPerRun):
    """One gain d_kc a channel c and run k, relative to the reference; the map d shows what changed in the detector.

        d_kc = sum (x - e) e / s² / sum e² / s²,    score_k = -sum_c ((x - e (1 + d_kc)) / s)² / 2

    x: count. e, s: expected count and its standard deviation under the lumisection's conditions. The sums of d run over the
    train lumisections. The terms of the score are cut at ±10 deviations, so that one channel cannot decide a broken
    lumisection. d is not shrunk (docs/decisions/2026-11-29-closed-forms.md).
    """

    name = "gain_map"
    arrays = ("gains", "gain_errors")
    channel_flops = 7  # leverage, its square and sum; pull (residual is counted): product, quotient and sum; all once

    @property
    def gains(self) -> np.ndarray:
        """d of each run and live channel, relative to the reference (-1 is dead): float32, (classes, live)."""
        return self._rows.get("gains", np.zeros((0, 0), dtype=np.float32))

    @property
    def gain_errors(self) -> np.ndarray:
        """Statistical error of `gains`, inf where a run has no information: float32, (classes, live)."""
        return self._rows.get("gain_errors", np.zeros((0, 0), dtype=np.float32))

    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        counts = train.counts[:, self.reference.live]
        expected, deviation, _ = self.reference.response(counts)
        gain, error = linear_gains((counts - expected) / deviation, expected / deviation)
        return gain.astype(np.float32), error.astype(np.float32)

    def _scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, self.reference.live]
        expected, deviation, _ = self.reference.response(counts)
        residuals, leverage = (counts - expected) / deviation, expected / deviation
        scores = np.empty((len(maps), self.classes))
        for k, gain in enumerate(self.gains):
            scores[:, k] = -0.5 * (np.clip(residuals - leverage * gain, -CLIP, CLIP) ** 2).sum(axis=1)
        return scores


def linear_gains(residual: np.ndarray, leverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain of each channel by linear least squares, and its error (inf where there is no information): (channels,) each.

    residual: (count - expected) / deviation, leverage: expected / deviation; (n, channels) each.
    """
    information = (leverage**2).sum(axis=0)
    known = information > 0
    gain = np.divide((leverage * residual).sum(axis=0), information, out=np.zeros(len(information)), where=known)
    error = np.divide(1.0, np.sqrt(information), out=np.full(len(information), np.inf), where=known)
    return gain, error
