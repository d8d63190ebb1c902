"""Lumisections as arrays: the maps of a run, and which part (train, validation, test) each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dqmstream.learners.blank import telling
from dqmstream.learners.splits import Part


@dataclass(frozen=True, eq=False)
class Maps:
    """Lumisections of one run (or of several, joined), raw.

    counts: float32, shape (n, depth, 64, 72). n_events, pileup: float64, shape (n,), nan where unknown.
    lumisection: int64, shape (n,).
    """

    counts: np.ndarray
    n_events: np.ndarray
    pileup: np.ndarray
    lumisection: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, index: np.ndarray) -> Maps:
        return Maps(self.counts[index], self.n_events[index], self.pileup[index], self.lumisection[index])


def joined(several: Sequence[Maps]) -> Maps:
    """The lumisections of several, one after another."""
    return Maps(*(np.concatenate([getattr(maps, entry.name) for maps in several]) for entry in fields(Maps)))


@dataclass(frozen=True, eq=False)
class RunData:
    """One experience: the lumisections of a run at a snapshot, in order, and the part that each is assigned to."""

    run: int
    maps: Maps
    parts: np.ndarray

    def part(self, part: Part) -> Maps:
        """The lumisections of a part, without blank ones (`learners.blank`); where all of them are blank, all of them."""
        maps = self.maps.take(np.flatnonzero(self.parts == part))
        rows = telling(maps.counts)
        return maps if len(rows) == len(maps) else maps.take(rows)
