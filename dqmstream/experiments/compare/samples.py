"""What is compared: the counts of two runs, and the channels that count in either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dqmstream.lumisection import IETA, readout_box

_ROWS = 256
"""Lumisections at a time: a few megabytes, which stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Lumisections of a run, live channels only.

    counts: (n, live). events: number of events, (n,), nan where unknown. lumisection: numbers, (n,), ascending. scale: 25 if
    rows were interpolated, else 1 (`learners.splits`).
    """

    counts: np.ndarray
    events: np.ndarray
    lumisection: np.ndarray
    scale: int

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Sample:
        """The lumisections at these positions."""
        return Sample(self.counts[index], self.events[index], self.lumisection[index], self.scale)

    def totals(self) -> np.ndarray:
        """Counts of each channel summed over the lumisections, (live,)."""
        return sum((counts.sum(axis=0) for _, counts in self.parts()), np.zeros(self.counts.shape[1]))

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices of lumisections with their counts as float64. All counts in double precision would double the memory."""
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            yield rows, self.counts[rows].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels that count in at least one of the runs.

    live: bool, (depth, 64, 72). All properties have shape (live,), in the order of the cells of `live`; box: the channel's
    readout box, -18..18 (`lumisection.readout_box`).
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
