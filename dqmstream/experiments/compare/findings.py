"""What a comparison of two runs found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dqmstream.experiments.compare.differences import Ground
from dqmstream.experiments.compare.pair import Pair
from dqmstream.experiments.compare.separation import Separation
from dqmstream.experiments.compare.significance import ChangeTests
from dqmstream.experiments.detector_map import DEAD

MIN_TESTED_FRACTION = 0.5
"""Share of the channels that must be testable, or the runs are not comparable."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a comparison found.

    rate: false-discovery rate of each family. separation: None if a run is too short for it. box_names, box_channels: of the
    readout boxes, -18..18, and how many channels are in the test of each. common: number of lumisections of each run that were
    compared. overlap: share of a run's lumisections under conditions that both had, the smaller of both runs'. ground: what the
    channels are judged by. rho: overdispersion of each channel, (live,), 0 if events are unknown. spread: deviation of the true
    ratios from 1 over the channels most sensitive to gain, robustly.
    """

    pair: Pair
    rate: float
    separation: Separation | None
    channel_tests: ChangeTests
    box_tests: ChangeTests
    box_names: np.ndarray
    box_channels: np.ndarray
    common: tuple[int, int]
    overlap: float
    ground: Ground
    rho: np.ndarray
    spread: float

    @property
    def by_ring(self) -> bool:
        """Channels are judged by their rings, not by a response that was fitted to both runs."""
        return self.ground is not Ground.SHARED

    @property
    def comparable(self) -> bool:
        """At least half of the channels could be tested."""
        return bool(np.isfinite(self.channel_tests.p).mean() >= MIN_TESTED_FRACTION)

    @property
    def died(self) -> np.ndarray:
        """Channels that changed to less than a tenth of their response: bool, (live,)."""
        return self.channel_tests.changed & (self.channel_tests.ratio < DEAD)

    @property
    def woke(self) -> np.ndarray:
        """Channels that changed from less than a tenth of their response: bool, (live,)."""
        return self.channel_tests.changed & (self.channel_tests.ratio > 1 / DEAD)

    @cached_property
    def states(self) -> np.ndarray:
        """What became of each channel, str, (live,): changed, dead, alive (again), or empty."""
        changed = np.where(self.channel_tests.changed, "changed", "")
        return np.where(self.died, "dead", np.where(self.woke, "alive", changed))
