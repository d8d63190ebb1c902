"""What luminosity did in each lumisection of two runs, read off the channels that did not change.

Each lumisection has an exposure E, which counts scale with, and a ratio z, which grows with pileup:

* events known: E is their number N, z the mean fraction of events in which channels fire, over its mean in both runs;
* events unknown: E = b and z = a / b, where a and b are the means of rings |ieta| 19-23 and 26-28 over theirs in both runs
  (as in `learners.response.reference`: a rises with pileup; b is nearly full and follows the number of events).

Both runs are read by the same channels, divided by the same means. Each level is the median over readout boxes, so a box that
lost gain is not taken for luminosity. A factor common to all channels is luminosity by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.compare.samples import Channels, Sample
from dqmstream.learners.response.reference import A_RINGS, B_RINGS

MIN_COUNTS = 25
"""Counts, and events without a count, that a channel needs for a normal test."""


@dataclass(frozen=True, eq=False)
class LuminosityRuler:
    """Reads exposure and ratio off the counts of a lumisection.

    counts_events: the number of events is known and is the exposure. fraction, dim, bright: matrices (live, boxes) that turn
    counts into the level of each readout box: of all channels, of rings a, and of rings b.
    """

    counts_events: bool
    fraction: np.ndarray
    dim: np.ndarray
    bright: np.ndarray

    @classmethod
    def fit(cls, samples: Sequence[Sample], channels: Channels, steady: np.ndarray, counts_events: bool) -> LuminosityRuler:
        """Make the ruler for these runs. steady: bool, (live,), the channels that are taken not to have changed."""
        profile, counting = _profile(samples, counts_events)
        a, b = _groups(channels, profile, counting)
        fraction, dim, bright = (_by_box(channels, steady, group, profile) for group in (counting, a, b))
        return cls(counts_events, fraction, dim, bright)

    def exposure_and_ratio(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Exposure and ratio of each lumisection, float64, (n,) each; both are 0 where nothing counted."""
        if self.counts_events:
            exposure = sample.events
            level = _level(sample, self.fraction)
        else:
            level, exposure = self.ring_levels(sample).T
        return exposure, np.divide(level, exposure, out=np.zeros_like(level), where=exposure > 0)

    def ratio_noise(self, sample: Sample) -> float:
        """Variance of the ratio that is measurement noise, from the ratios by every second readout box.

        nan if there are too few boxes.
        """
        halves = []
        for start in (0, 1):
            shares = [share[:, start::2] for share in (self.fraction, self.dim, self.bright)]
            if any(share.shape[1] == 0 for share in shares):
                return float("nan")
            halves.append(LuminosityRuler(self.counts_events, *shares).exposure_and_ratio(sample)[1])
        difference = halves[0] - halves[1]
        return float(np.mean((difference - difference.mean()) ** 2)) / 4

    def ring_levels(self, sample: Sample) -> np.ndarray:
        """Levels of rings a and b in each lumisection, which follow luminosity alone: float64, (n, 2)."""
        return np.stack([_level(sample, self.dim), _level(sample, self.bright)], axis=1)


def _level(sample: Sample, share: np.ndarray) -> np.ndarray:
    """Median over readout boxes of their counts over their mean counts: (n,)."""
    return np.concatenate([np.median(counts @ share, axis=1) for _, counts in sample.parts()])


def _profile(samples: Sequence[Sample], counts_events: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each channel over both runs with equal weights, (live,), and the channels that count in all of them, bool.

    The means are counts per event, or per lumisection if events are unknown. If no channel counts in all runs, all channels
    that count are used.
    """
    totals = [sample.totals() for sample in samples]
    sizes = [sample.events.sum() if counts_events else len(sample) for sample in samples]
    profile = np.mean([total / size for total, size in zip(totals, sizes, strict=True)], axis=0)
    counting = np.all([total >= MIN_COUNTS for total in totals], axis=0)
    return np.asarray(profile), counting if counting.any() else profile > 0


def _groups(channels: Channels, profile: np.ndarray, counting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels of rings a and of rings b that count in all runs, bool, (live,) each.

    If either has none (other parts of the detector, or dead rings), a is the dimmer half of all channels, b the brighter half.
    """
    ring = np.abs(channels.ieta)
    a, b = ((ring >= low) & (ring <= high) & counting for low, high in (A_RINGS, B_RINGS))
    if a.any() and b.any():
        return a, b
    dimmer = counting & (profile <= np.median(profile[counting]))
    brighter = counting & ~dimmer
    return dimmer, brighter if brighter.any() else dimmer


def _by_box(channels: Channels, steady: np.ndarray, group: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """A matrix (live, boxes) that turns counts into each readout box's total over its mean total.

    group, steady, profile: (live,). Only steady channels of the group are used, or all of the group if none is steady.
    """
    cells = group & steady if (group & steady).any() else group
    boxes = np.unique(channels.box[cells])
    share = ((channels.box[:, None] == boxes) & cells[:, None]).astype(np.float64)
    return share / (profile @ share)
