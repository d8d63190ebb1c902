"""What luminosity did in each lumisection of two runs, read off the channels that did not change.

A lumisection's exposure E says how much it counts, its ratio z where on the response to pileup it lies:

* events known: E is their number N, z the mean fraction of events in which channels fire, over its mean in both runs;
* events unknown: E = b and z = a / b, where a and b are the means of rings |ieta| 19-23 and 26-28 over theirs in both runs
  (`learners.response.reference` has the same; a rises with pileup, b is nearly full and follows the number of events).

Both runs are measured with one ruler: the same channels, divided by the same means. Each level is the median over readout
boxes, so a box that lost gain does not pass for luminosity. A factor common to all channels is luminosity by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dqmstream.learners.response.reference import A_RINGS, B_RINGS
from dqmstream.lumisection import IETA, readout_box

FEW = 25
"""Fewer counts, or fewer events without a count, than this are no sample for a normal test."""

_ROWS = 256
"""A few megabytes at a time, which stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Lumisections of a run, live channels only.

    counts: (n, live). events: (n,), nan where unknown. lumisection: numbers, (n,), ascending. scale: 25 where rows were
    interpolated, else 1 (`learners.splits`).
    """

    counts: np.ndarray
    events: np.ndarray
    lumisection: np.ndarray
    scale: int

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Sample:
        return Sample(self.counts[index], self.events[index], self.lumisection[index], self.scale)

    def totals(self) -> np.ndarray:
        """Counts of each channel over all lumisections, (live,)."""
        return sum((counts.sum(axis=0) for _, counts in self.parts()), np.zeros(self.counts.shape[1]))

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows, and their counts as float64, a few at a time: both runs in double precision would double the memory."""
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            yield rows, self.counts[rows].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels that count in at least one of the runs. live: bool, (depth, 64, 72); all else has shape (live,).

    box: `lumisection.readout_box`.
    """

    live: np.ndarray

    @cached_property
    def ieta(self) -> np.ndarray:
        return IETA[np.nonzero(self.live)[1]]

    @cached_property
    def iphi(self) -> np.ndarray:
        return np.nonzero(self.live)[2] + 1

    @cached_property
    def depth(self) -> np.ndarray:
        return np.nonzero(self.live)[0] + 1

    @cached_property
    def box(self) -> np.ndarray:
        return readout_box(self.ieta, self.iphi)

    def __len__(self) -> int:
        return int(self.live.sum())


@dataclass(frozen=True, eq=False)
class Conditions:
    """The ruler. counts_events: the number of events is known and is the exposure.

    fraction, dim, bright: matrices (live, boxes) from counts to a box's level: of all channels, of rings a, and of rings b.
    """

    counts_events: bool
    fraction: np.ndarray
    dim: np.ndarray
    bright: np.ndarray

    @classmethod
    def fit(cls, samples: Sequence[Sample], channels: Channels, steady: np.ndarray, counts_events: bool) -> Conditions:
        """steady: bool, (live,), the channels that may be trusted not to have changed."""
        profile, counting = _profile(samples, counts_events)
        a, b = _groups(channels, profile, counting)
        fraction, dim, bright = (_by_box(channels, steady, group, profile) for group in (counting, a, b))
        return cls(counts_events, fraction, dim, bright)

    def of(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Exposure and ratio of each lumisection, float64, (n,) each; both are 0 where nothing was read out."""
        if self.counts_events:
            exposure = sample.events
            level = _level(sample, self.fraction)
        else:
            level, exposure = self.rings(sample).T
        return exposure, np.divide(level, exposure, out=np.zeros_like(level), where=exposure > 0)

    def noise(self, sample: Sample) -> float:
        """Variance of the ratio that is measurement: what the ratios by every second readout box differ in.

        nan where there are too few boxes to tell.
        """
        halves = []
        for start in (0, 1):
            shares = [share[:, start::2] for share in (self.fraction, self.dim, self.bright)]
            if any(share.shape[1] == 0 for share in shares):
                return float("nan")
            halves.append(Conditions(self.counts_events, *shares).of(sample)[1])
        difference = halves[0] - halves[1]
        return float(np.mean((difference - difference.mean()) ** 2)) / 4

    def rings(self, sample: Sample) -> np.ndarray:
        """a and b of each lumisection, what luminosity alone says: float64, (n, 2)."""
        return np.stack([_level(sample, self.dim), _level(sample, self.bright)], axis=1)


def _level(sample: Sample, share: np.ndarray) -> np.ndarray:
    """Median over readout boxes of their counts, each over its mean: (n,)."""
    return np.concatenate([np.median(counts @ share, axis=1) for _, counts in sample.parts()])


def _profile(samples: Sequence[Sample], counts_events: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each channel over both runs, each run with the same weight, and the channels that count in all of them.

    The means are counts an event or a lumisection, (live,). Where no channel counts in all runs, all do as a ruler.
    """
    totals = [sample.totals() for sample in samples]
    sizes = [sample.events.sum() if counts_events else len(sample) for sample in samples]
    profile = np.mean([total / size for total, size in zip(totals, sizes, strict=True)], axis=0)
    counting = np.all([total >= FEW for total in totals], axis=0)
    return np.asarray(profile), counting if counting.any() else profile > 0


def _groups(channels: Channels, profile: np.ndarray, counting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels of rings a and of rings b that count in all runs, bool, (live,) each.

    Where a ring group has none (another part of the detector, or dead) a is the dimmer half of all, b the brighter half.
    """
    ring = np.abs(channels.ieta)
    a, b = ((ring >= low) & (ring <= high) & counting for low, high in (A_RINGS, B_RINGS))
    if a.any() and b.any():
        return a, b
    dimmer = counting & (profile <= np.median(profile[counting]))
    brighter = counting & ~dimmer
    return dimmer, brighter if brighter.any() else dimmer


def _by_box(channels: Channels, steady: np.ndarray, group: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """A matrix (live, boxes) from counts to each readout box's total over its mean total, of a group's steady channels.

    Of all its channels if none is steady.
    """
    cells = group & steady if (group & steady).any() else group
    boxes = np.unique(channels.box[cells])
    share = ((channels.box[:, None] == boxes) & cells[:, None]).astype(np.float64)
    return share / (profile @ share)
