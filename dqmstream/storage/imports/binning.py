"""Which bins of a file's maps are which channels, for files whose maps are not binned as the archive's are.

Three binnings are known besides the archive's own:

* 84 rows of ieta, as cmssw books them (DIALS). HE, HB and HO are at ieta + 42 below zero and ieta + 41 above. HF is one bin
  further out, at ieta + 41 and ieta + 42, so that its ring 29 lies beside that of HE. The archive has one row for |ieta| 29,
  which is HE's: HF's ring 29 is outside, as is everything beyond |ieta| 32. Rings 30 to 32 have their own rows.
* Any other even number of rows above 64: the middle 64.
* 64 rows and 72 columns booked as (64, -32, 32) and (72, 0, 72) and never moved by one afterwards, as a converter in use does
  for `he`, `hb`, `hf` and `ho` but not for `hbhe`. ieta is row ieta + 32 on both sides, with an empty row for ieta 0, and iphi
  is column iphi, with an empty column 0. The bins end before ieta 32 and iphi 72, whose counts are not in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dqmstream.lumisection import IETA, IPHI, N_IETA, N_IPHI

CMSSW_WIDTH = 84

HAS_CELL = (np.abs(IETA)[:, None] <= 20) | (IPHI % 2 == 1)
"""Where HCAL has channels: from |ieta| 21 on, at odd iphi only. bool, (64, 72)."""


@dataclass(frozen=True, eq=False)
class Binning:
    """Where the archive's rows and columns are in maps of a file, (64,) and (72,); -1 for those that the file does not have.

    width: rows of ieta in the file's maps.
    """

    rows: np.ndarray
    columns: np.ndarray
    width: int

    @property
    def is_plain(self) -> bool:
        """Whether the file's maps are the archive's maps."""
        return self.width == N_IETA and bool((self.rows >= 0).all())

    def apply(self, maps: np.ndarray) -> np.ndarray:
        """The archive's maps, (..., 64, 72), from the file's, (..., width, 72); the same array where nothing moves."""
        if self.is_plain:
            return maps
        found = np.take(np.take(maps, np.maximum(self.rows, 0), -2), np.maximum(self.columns, 0), -1)
        found[..., self.rows < 0, :] = 0
        found[..., self.columns < 0] = 0
        return found


PLAIN = Binning(np.arange(N_IETA), np.arange(N_IPHI), N_IETA)

UNSHIFTED = Binning(np.array([*range(32), *range(33, N_IETA), -1]), np.array([*range(1, N_IPHI), -1]), N_IETA)
"""Of maps that the converter did not move by one."""

CMSSW = Binning(np.array([9, 10, 11, *range(13, 71), 72, 73, 74]), np.arange(N_IPHI), CMSSW_WIDTH)
"""ieta -32..-30 of HF, -29..-1 and 1..29, 30..32 of HF."""

CMSSW_HF = np.array([9, 10, 11, 72, 73, 74])
"""Rows of the 84 that hold HF and are inside."""

CMSSW_HF_29 = np.isin(np.delete(np.arange(CMSSW_WIDTH), CMSSW.rows), (12, 71))
"""Which of the 20 rows outside are those of HF at |ieta| 29: bool, (20,)."""


def is_width(width: int) -> bool:
    """Whether maps with so many rows of ieta hold the archive's 64."""
    return width >= N_IETA and (width - N_IETA) % 2 == 0


def binning_of(width: int) -> Binning:
    """Binning of maps with so many rows of ieta, a width that `is_width` accepts."""
    if width == N_IETA:
        return PLAIN
    edge = (width - N_IETA) // 2
    return CMSSW if width == CMSSW_WIDTH else Binning(np.arange(edge, edge + N_IETA), np.arange(N_IPHI), width)


def find_shift(pieces: Iterable[np.ndarray]) -> tuple[Binning, tuple[str, ...]]:
    """PLAIN or UNSHIFTED, by which bins of a file's maps hold counts, and notes for the user. pieces: (..., 64, 72).

    Unshifted maps have nothing in column 0 and in row 32, but so do many others. Two more conditions must hold. The maps read
    as PLAIN have counts where HCAL has no channel (even iphi beyond |ieta| 20), or on all sides of that column and row (HB
    alone). The maps read as UNSHIFTED have no counts where HCAL has no channel. Pieces are read until one rules a shift out.
    """
    filled = np.zeros((N_IETA, N_IPHI), bool)
    for piece in pieces:
        filled |= (piece != 0).reshape(-1, N_IETA, N_IPHI).any(axis=0)
        if filled[32].any() or filled[:, 0].any():
            return PLAIN, ()
    of_no_channel = int((filled & ~HAS_CELL).sum())
    surrounded = all(line.any() for line in (filled[31], filled[33], filled[:, 1], filled[:, -1]))
    if not (of_no_channel or surrounded):
        return PLAIN, ()
    if (UNSHIFTED.apply(filled) & ~HAS_CELL).any():
        return PLAIN, (f"{of_no_channel} cells hold counts where HCAL has no channel (even iphi beyond |ieta| 20)",)
    return UNSHIFTED, (
        "moved by one: row 32 and column 0 are empty, ieta above 0 and iphi are one too high, as in hbhe files of the "
        "converter; ieta 32 and iphi 72 are not in the file",
    )
