"""Locations of faults: which channels fail together, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.simulator.detector import LIVE, READOUT_BOXES
from dqmstream.lumisection import IETA, IPHI, N_IETA, N_IPHI, rbx_mask

CHANNELS = np.argwhere(LIVE)
"""Row and column of each live channel, (932, 2), ordered by ieta, then iphi."""

MODULES = tuple((side, pair, parity) for side in (-1, 1) for pair in range(36) for parity in (0, 1))


@dataclass(frozen=True, slots=True, eq=False)
class FaultLocation:
    """name: as experts say it. numbers: behind the name. cells: of the location, with and without a channel, bool, (64, 72)."""

    name: str
    numbers: tuple[int, ...]
    cells: np.ndarray

    @property
    def channels(self) -> np.ndarray:
        """The live channels of HE depth 1 in the location: bool, (64, 72)."""
        return LIVE & self.cells


def channel(row: int, column: int) -> FaultLocation:
    """One channel."""
    mask = np.zeros((N_IETA, N_IPHI), dtype=bool)
    mask[row, column] = True
    return FaultLocation(f"ieta {IETA[row]} iphi {column + 1}", (int(IETA[row]), int(column) + 1), mask)


def module(side: int, pair: int, parity: int) -> FaultLocation:
    """A readout module: alternating cells of iphi 2 pair + 1 and 2 pair + 2 on a side, 5 to 7 channels of depth 1.

    side: -1 or 1. pair: 0..35. parity: 0 or 1, which half of the chequerboard of rows and columns.
    """
    half = (np.arange(N_IETA)[:, None] + np.arange(N_IPHI)) % 2 == parity
    columns = np.isin(IPHI, (2 * pair + 1, 2 * pair + 2))
    mask = (np.sign(IETA) == side)[:, None] & columns & half
    name = f"module HE{_sign(side)} iphi {2 * pair + 1}-{2 * pair + 2} {'AB'[parity]}"
    return FaultLocation(name, (side, pair, parity), mask)


def box(side: int, n: int) -> FaultLocation:
    """A readout box (RBX): 4 columns of iphi on a side."""
    return FaultLocation(f"HE{_sign(side)}{n:02d}", (side, n), rbx_mask(side, n))


def hem1516() -> FaultLocation:
    """HEM15 and HEM16: ieta < 0, iphi 55-62."""
    return FaultLocation("HEM15-16", (), (IETA < 0)[:, None] & ((IPHI >= 55) & (IPHI <= 62)))


def a_channel(uniform: float) -> FaultLocation:
    """A live channel, chosen by a number in [0, 1)."""
    return channel(*CHANNELS[int(uniform * len(CHANNELS))].tolist())


def a_module(uniform: float) -> FaultLocation:
    """A readout module, chosen by a number in [0, 1)."""
    return module(*MODULES[int(uniform * len(MODULES))])


def a_box(uniform: float) -> FaultLocation:
    """A readout box, chosen by a number in [0, 1)."""
    return box(*READOUT_BOXES[int(uniform * len(READOUT_BOXES))])


def _sign(side: int) -> str:
    return "P" if side > 0 else "M"
