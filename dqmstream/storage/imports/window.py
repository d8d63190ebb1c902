"""The archive's part of wider maps, and the counts outside of it, which are refused or cropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA
from dqmstream.storage.imports.binning import CMSSW_HF, CMSSW_HF_29, CMSSW_WIDTH, Binning, binning_of, find_shift
from dqmstream.storage.imports.run_file import spans


class Window:
    """Cuts the archive's 64 rows out of wider maps and counts what lies outside.

    crop: leave out what lies outside. Without it a count there is an InputError.
    """

    def __init__(self, crop: bool) -> None:
        self._crop = crop
        self._cells: dict[int, np.ndarray] = {}
        self._counts = 0.0
        self._has_hf = False

    def cut(self, maps: np.ndarray, where: str) -> np.ndarray:
        """The archive's maps, (..., 64, 72), from (..., width, 72) of a width that `binning.is_width` accepts.

        where: file and place of the maps, for messages. Raises InputError as `check` does.
        """
        self.check(maps, where)
        return binning_of(maps.shape[-2]).apply(maps)

    def check(self, maps: np.ndarray, where: str) -> None:
        """Add up what lies outside. Raises InputError for counts there, unless they are cropped."""
        width = maps.shape[-2]
        if width == N_IETA:
            return
        if width == CMSSW_WIDTH and not self._has_hf:
            self._has_hf = bool((maps[..., CMSSW_HF, :] != 0).any())
        outside = np.delete(maps, binning_of(width).rows, axis=-2)
        filled = (outside != 0) & ~np.isnan(outside)
        if not filled.any():
            return
        cells = filled.any(axis=tuple(range(maps.ndim - 2)))
        self._cells[width] = self._cells.get(width, False) | cells
        self._counts += float(np.nansum(outside))
        if not self._crop:
            raise InputError(
                f"{where}: {self._outside}, and the archive's maps have no place for them: give --crop to leave them out"
            )

    @property
    def _outside(self) -> str:
        """How many counts and cells lie outside, and where."""
        of_hf = sum(int(cells[CMSSW_HF_29].sum()) for width, cells in self._cells.items() if width == CMSSW_WIDTH)
        beyond = sum(int(cells.sum()) for cells in self._cells.values()) - of_hf
        parts = [f"{beyond} cells beyond |ieta| 32"] if beyond else []
        parts += [f"{of_hf} cells of HF at |ieta| 29, where the row is HE's"] if of_hf else []
        return f"{self._counts:g} counts in {' and '.join(parts)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done with the maps, for the user."""
        notes = []
        if self._has_hf:
            notes.append("HF at |ieta| 30 to 32 was read one bin further out than HE, where cmssw books it")
        if self._cells:
            notes.append(f"cropped: {self._outside}")
        return tuple(notes)


def find_binning(maps: np.ndarray, path: Path, crop: bool) -> tuple[Binning, tuple[str, ...]]:
    """Binning of all maps of a file, (n, ..., width, 72), and notes for the user. The file is read a piece at a time.

    Raises InputError for counts outside the archive's maps, unless they are cropped.
    """
    width = maps.shape[-2]
    if width == N_IETA:
        return find_shift(np.asarray(maps[start:stop]) for start, stop in spans(maps, len(maps)))
    window = Window(crop)
    for start, stop in spans(maps, len(maps)):
        window.check(np.asarray(maps[start:stop]), f"{path}, rows {start} to {stop - 1}")
    return binning_of(width), window.notes
