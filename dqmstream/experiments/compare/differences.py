"""By how much each channel differs between two runs, judged by a response fitted to both, or by its ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from dqmstream.experiments.compare.estimate import Estimate, spread_of
from dqmstream.experiments.compare.luminosity import LuminosityRuler
from dqmstream.experiments.compare.response_fit import MIN_RATIO_RANGE, fit_response
from dqmstream.experiments.compare.ring_comparison import compare_within_rings
from dqmstream.experiments.compare.samples import Channels, Sample
from dqmstream.experiments.compare.separation import testable
from dqmstream.experiments.compare.shared_response import SharedResponse

MIN_SHARED_FRACTION, MIN_SHARED_LUMISECTIONS = 0.02, 20
"""Share of each run's lumisections whose ratio the other run has too, and their number (times 25 if rows were interpolated).
With less no response can be fitted to both runs."""

MAX_RATIO_ERROR = 0.3
"""In units of a channel's error. If noise of the ratio may shift h by more, the fit in the ratio is not used."""

_HUBER, _HUBER_STEPS = 1.345, 20
_EDGE = 0.005
"""Quantile at which the range of a run's ratio ends: a few lumisections at its edge would stretch the response."""


class Ground(Enum):
    """What channels are judged by: a response fitted to both runs (SHARED), or their rings, with the reason for it."""

    SHARED = "shared"
    LEVEL = "level"
    APART = "apart"
    SHORT = "short"


@dataclass(frozen=True, eq=False)
class HalfDifferences:
    """Half differences h of all channels, and what their tests need.

    influence: contribution of each block of lumisections to h, (blocks, live), with `dof` degrees of freedom. sensitivity:
    change of h with a change of gain, (live,), in units of the largest. rho: overdispersion, (live,). common, overlap, ground:
    as in `findings.Findings`. testable: bool, (live,).
    """

    estimate: Estimate
    influence: np.ndarray
    dof: int
    sensitivity: np.ndarray
    rho: np.ndarray
    common: tuple[int, int]
    overlap: float
    ground: Ground
    testable: np.ndarray

    def spread(self) -> float:
        """Variance of the true h over the most sensitive channels, robustly; others scatter less, by their sensitivity."""
        chosen = self.testable
        return spread_of((self.estimate.h / self.sensitivity)[chosen], (self.estimate.error / self.sensitivity)[chosen])

    def deviation(self) -> np.ndarray:
        """Expected deviation of each h from zero, (live,): its error, and the scatter of the true h over channels."""
        return np.sqrt(self.estimate.error**2 + self.sensitivity**2 * self.spread())

    def centred(self) -> HalfDifferences:
        """Remove what a shift of the conditions explains: a part proportional to the sensitivity, and a common one.

        Both are fitted with Huber's weights (Robust Statistics, 1981, sec. 7.8), so that outliers hardly count.
        """
        testable = self.testable
        h, error = self.estimate.h[testable], self.estimate.error[testable]
        design = np.stack([self.sensitivity, np.ones_like(self.sensitivity)], axis=1)
        chosen = design[testable] / error[:, None]
        weight = np.ones_like(h)
        for _ in range(_HUBER_STEPS):
            shift = np.linalg.lstsq(chosen * weight[:, None], h / error * weight, rcond=None)[0]
            pull = np.abs(h / error - chosen @ shift)
            weight = np.sqrt(_HUBER / np.maximum(pull, _HUBER))
        return replace(self, estimate=replace(self.estimate, h=self.estimate.h - design @ shift))


def half_differences(a: Sample, b: Sample, channels: Channels, steady: np.ndarray, counts_events: bool) -> HalfDifferences:
    """Fit both runs where they share conditions; if they hardly do, compare channels with their rings."""
    ruler = LuminosityRuler.fit((a, b), channels, steady, counts_events)
    ratios = [ruler.exposure_and_ratio(sample)[1] for sample in (a, b)]
    edges = [np.quantile(ratio, [_EDGE, 1 - _EDGE]) for ratio in ratios]
    low, high = max(edge[0] for edge in edges), min(edge[1] for edge in edges)
    rows = [np.flatnonzero((ratio >= low) & (ratio <= high)) for ratio in ratios]
    common = (len(rows[0]), len(rows[1]))
    overlap = min(common[0] / len(a), common[1] / len(b))
    if overlap < MIN_SHARED_FRACTION or min(common) < MIN_SHARED_LUMISECTIONS * a.scale:
        return _within_rings(
            a, b, channels, counts_events, overlap, Ground.APART if overlap < MIN_SHARED_FRACTION else Ground.SHORT
        )
    shared = [sample.take(index) for sample, index in zip((a, b), rows, strict=True)]
    level, noise = _ratio_levels(shared, ruler)
    if high - low <= MIN_RATIO_RANGE or noise > 0.5:
        return _within_rings(shared[0], shared[1], channels, counts_events, overlap, Ground.LEVEL)
    response = fit_response(shared[0], shared[1], ruler, float(low), float(high))
    chosen = testable(shared[0], shared[1], counts_events)
    estimate = response.estimate(chosen)
    if chosen.any() and noise * level / 2 > MAX_RATIO_ERROR * float(np.median(estimate.error[chosen])):
        return _within_rings(shared[0], shared[1], channels, counts_events, overlap, Ground.LEVEL)
    return HalfDifferences(
        estimate, response.influence, response.dof, _sensitivity(response), response.rho, common, overlap, Ground.SHARED, chosen
    )


def _ratio_levels(samples: Sequence[Sample], ruler: LuminosityRuler) -> tuple[float, float]:
    """Distance of the runs' mean ratios, and the share of a ratio's variance within the runs that is noise, 0..1.

    The true ratios of lumisections with the same measured ratio differ by the product of both.
    """
    ratios = [ruler.exposure_and_ratio(sample)[1] for sample in samples]
    movement = float(np.mean([ratio.var() for ratio in ratios]))
    noise = float(np.mean([ruler.ratio_noise(sample) for sample in samples]))
    apart = float(abs(ratios[0].mean() - ratios[1].mean()))
    if np.isnan(noise):
        return apart, 0.0
    return apart, min(noise / movement, 1.0) if movement > 0 else 1.0


def _within_rings(
    a: Sample, b: Sample, channels: Channels, counts_events: bool, overlap: float, ground: Ground
) -> HalfDifferences:
    """Differences of the channels from their rings."""
    rings = compare_within_rings(a, b, channels, counts_events)
    nothing = np.zeros(len(channels))
    return HalfDifferences(
        rings.estimate, nothing[None], 1, rings.sensitivity, nothing, (len(a), len(b)), overlap, ground,
        np.isfinite(rings.estimate.error),
    )  # fmt: skip


def _sensitivity(response: SharedResponse) -> np.ndarray:
    """Relative slope of each channel's counts with pileup, (live,), which is how a change of its gain shows in them.

    In units of the largest, and at least a twentieth of it. If events are unknown, counts are relative to the brightest rings:
    channels that fire in nearly every event then fall with pileup, and this fall marks where gain has no effect.
    """
    low, high = response.ends()
    slope = (high - low) / np.maximum(high + low, np.finfo(float).tiny)
    if not response.ruler.counts_events:
        slope = slope - min(float(np.quantile(slope, 0.02)), 0.0)
    highest = float(np.quantile(slope, 0.95))
    return np.ones_like(slope) if highest <= 0 else np.clip(slope / highest, 0.05, 1.0)
