"""How channels move together in a lumisection: with its events, with its pileup, and with the gain of a readout box.

Where the rate of a channel changes by a small share its count changes by that share times its `response.sensitivity`. That is
the shape of a readout box's common mode, and of what pileup does; events move all counts by the same share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dqmstream.learners.reference import Reference
from dqmstream.learners.response import medians, sensitivity
from dqmstream.lumisection import IETA, IPHI, readout_box


@dataclass(frozen=True, eq=False)
class Look:
    """Lumisections seen through the reference, all float64 (n, live).

    residual: (count - expected) / deviation. deviation: of the count. fired: probability that the channel counts an event.
    count_leverage: by how many deviations the count moves where the count of the channel changes by 100 %. rate_leverage: the
    same for a change that is one of its rate, as large in the reference run.
    """

    residual: np.ndarray
    deviation: np.ndarray
    fired: np.ndarray
    count_leverage: np.ndarray
    rate_leverage: np.ndarray

    def of(self, channels: np.ndarray) -> Look:
        """The same of some channels."""
        return Look(*(getattr(self, field.name)[:, channels] for field in fields(self)))

    def rows(self, index: np.ndarray) -> Look:
        """The same of some lumisections."""
        return Look(*(getattr(self, field.name)[index] for field in fields(self)))

    def beside_runs(self) -> Look:
        """The same with an axis for runs, (n, 1, live)."""
        return Look(*(getattr(self, field.name)[:, None] for field in fields(self)))


class Modes:
    """The common modes of the live channels of a reference.

    sensitivity: m of each live channel in the reference run, the same in each ring, (live,). ring: a number for each pair of
    depth and |ieta|, (live,). boxes: names of the readout boxes that hold a live channel (`lumisection.readout_box`), (B,).
    cells: positions of each box's channels among the live ones.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        _, row, column = np.nonzero(reference.live)
        self.ring = reference.ring
        self.sensitivity = sensitivity(1 - medians(reference.typical.fired[0], self.ring))
        box = readout_box(IETA[row], IPHI[column])
        self.boxes = np.unique(box)
        self.cells = [np.flatnonzero(box == name) for name in self.boxes]

    def look(self, counts: np.ndarray) -> Look:
        """Lumisections by the counts of the live channels, (n, live)."""
        expected, deviation, fired = self._reference.response(counts)
        leverage = expected / deviation
        rate_leverage = leverage * (sensitivity(1 - fired) / self.sensitivity)
        return Look((counts - expected) / deviation, deviation, fired, leverage, rate_leverage)

    def by_box(self, values: np.ndarray) -> np.ndarray:
        """Sums over the channels of each box: (..., live) to (..., B)."""
        return np.stack([values[..., cells].sum(axis=-1) for cells in self.cells], axis=-1)
