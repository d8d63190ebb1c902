"""The readout boxes of the live channels: sums over the channels that one box reads out."""

from __future__ import annotations

import numpy as np

from dqmstream.lumisection import IETA, IPHI, readout_box


class ReadoutBoxes:
    """Which live channels belong to which readout box.

    names: names of the boxes that hold a live channel (`lumisection.readout_box`), (B,). cells: for each box, positions of its
    channels among the live ones.
    """

    def __init__(self, live: np.ndarray) -> None:
        """live: bool, (depth, 64, 72)."""
        _, row, column = np.nonzero(live)
        box = readout_box(IETA[row], IPHI[column])
        self.names = np.unique(box)
        self.cells = [np.flatnonzero(box == name) for name in self.names]

    def __len__(self) -> int:
        return len(self.cells)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the channels of each box: (..., live) -> (..., B)."""
        return np.stack([values[..., cells].sum(axis=-1) for cells in self.cells], axis=-1)
