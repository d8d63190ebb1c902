"""Lumisections as arrays: `Maps` holds some of them, `RunData` those of a run with the part that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dqmstream.learners.blank import informative
from dqmstream.learners.splits import Part


@dataclass(frozen=True, eq=False)
class Maps:
    """Raw occupancy maps of n lumisections.

    counts: float32, (n, depth, 64, 72), axes depth, ieta, iphi. n_events, pileup: float64, (n,), nan where unknown.
    lumisection: number within the run, int64, (n,).
    """

    counts: np.ndarray
    n_events: np.ndarray
    pileup: np.ndarray
    lumisection: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Maps:
        """Some of the lumisections, by position or by a bool mask."""
        return Maps(self.counts[index], self.n_events[index], self.pileup[index], self.lumisection[index])


def joined(several: Sequence[Maps]) -> Maps:
    """All lumisections of several `Maps`, one after another; there must be one."""
    return Maps(*(np.concatenate([getattr(maps, entry.name) for maps in several]) for entry in fields(Maps)))


@dataclass(frozen=True, eq=False)
class RunData:
    """An experience: the lumisections of one run in order, as an archive held them at a snapshot.

    parts: the `Part` of each lumisection, uint8, (n,). labels: 1 good, 0 faulty, -1 without a label, int8, (n,); None where
    nobody asked for labels.
    """

    run: int
    maps: Maps
    parts: np.ndarray
    labels: np.ndarray | None = None

    def part(self, part: Part) -> Maps:
        """The lumisections of a part, without blank ones (`learners.blank`); all of them where all are blank."""
        maps = self.maps.take(np.flatnonzero(self.parts == part))
        rows = informative(maps.counts)
        return maps if len(rows) == len(maps) else maps.take(rows)
