"""What every reader of lumisections gives: one run, its maps still on the disk, and what was left out of it and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA, N_IPHI, utf8
from dqmstream.storage.imports.places import CMSSW_HF, CMSSW_HF_29, CMSSW_WIDTH, PLAIN, Places, find_shift, places_of
from dqmstream.storage.layout import ROWS_PER_CHUNK

PIECE_BYTES = 16 << 20
"""Of maps that are held at once while a run goes by."""


@dataclass(frozen=True)
class Dropped:
    """Lumisections, or rows of a file, that were not taken. what: "lumisections" or "rows"."""

    reason: str
    count: int
    what: str = "lumisections"


NO_LUMISECTION = Dropped("row 0, which is empty: row k is lumisection k", 1, "rows")


@dataclass(frozen=True, eq=False)
class RunData:
    """A run as one file, or several, hold it.

    name: of the files. counts: (rows, width, 72) or (rows, depth, width, 72), on the disk (a memory map), of which `places`
    are taken. lumisection: numbers of those that are taken, int64, (n,), ascending. events, pileup: float64, (n,), nan where
    unknown. source: dataset and monitoring element, empty where unknown. notes: what a reader of the result must know. rows:
    places in counts of the lumisections, (n,); None: all of them. row_is_in_file: whether these are rows of the file, too.
    dataset: as file or file name tell it, whatever name it is filed under; empty where unknown. In name, source and dataset
    escapes stand for what UTF-8 has no bytes for.
    """

    name: str
    run: int
    counts: np.ndarray
    lumisection: np.ndarray
    events: np.ndarray
    pileup: np.ndarray
    source: str = ""
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    row_is_in_file: bool = True
    places: Places = PLAIN
    dataset: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "source", "dataset"):
            object.__setattr__(self, name, utf8(getattr(self, name)))

    @property
    def depths(self) -> int:
        return 1 if self.counts.ndim == 3 else int(self.counts.shape[1])

    @property
    def size(self) -> int:
        """Lumisections that are taken."""
        return len(self.lumisection)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of a map as `maps` gives it: (64, 72) or (depth, 64, 72)."""
        return (*self.counts.shape[1:-2], N_IETA, N_IPHI)

    def maps(self, which: slice | np.ndarray) -> np.ndarray:
        """Maps of these of the taken lumisections, in memory: (n, 64, 72) or (n, depth, 64, 72)."""
        return np.ascontiguousarray(self.places.of(self.counts[which if self.rows is None else self.rows[which]]))

    def all_maps(self) -> np.ndarray:
        """All that are taken: on the disk where they lie there so, else in memory."""
        return self.counts if self.rows is None and self.places.are_plain else self.maps(slice(None))

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the first, maps) of the taken lumisections, a piece at a time in memory."""
        for start, stop in spans(self.counts, self.size):
            yield start, self.maps(slice(start, stop))

    def only(self, good: np.ndarray, reason: str) -> RunData:
        """The run without the lumisections that are not good: bool, (n,)."""
        if good.all():
            return self
        rows = np.arange(len(self.counts)) if self.rows is None else self.rows
        return replace(
            self,
            lumisection=self.lumisection[good],
            events=self.events[good],
            pileup=self.pileup[good],
            rows=rows[good],
            dropped=(*self.dropped, Dropped(reason, int((~good).sum()))),
        )


def spans(maps: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of pieces of `size` such maps, each by whole chunks of an archive."""
    fit = PIECE_BYTES // (int(np.prod(maps.shape[1:])) * maps.itemsize)
    step = max(fit // ROWS_PER_CHUNK, 1) * ROWS_PER_CHUNK
    for start in range(0, size, step):
        yield start, min(start + step, size)


class Window:
    """The archive's rows of wider maps, and what lay outside of them.

    crop: leave out what lies outside; else a count there is an InputError.
    """

    def __init__(self, crop: bool) -> None:
        self._crop = crop
        self._cells: dict[int, np.ndarray] = {}
        self._counts = 0.0
        self._has_hf = False

    def of(self, maps: np.ndarray, where: str) -> np.ndarray:
        """maps: (..., width, 72) of a width that `places.is_width` takes; returns (..., 64, 72)."""
        self.check(maps, where)
        return places_of(maps.shape[-2]).of(maps)

    def check(self, maps: np.ndarray, where: str) -> None:
        """Note what lies outside. Raises InputError where that has counts, and is not to be cropped."""
        width = maps.shape[-2]
        if width == N_IETA:
            return
        if width == CMSSW_WIDTH and not self._has_hf:
            self._has_hf = bool((maps[..., CMSSW_HF, :] != 0).any())
        outside = np.delete(maps, places_of(width).rows, axis=-2)
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
        """What was done with the maps, for who reads the result."""
        notes = []
        if self._has_hf:
            notes.append("HF at |ieta| 30 to 32 was read one bin further out than HE, where cmssw books it")
        if self._cells:
            notes.append(f"cropped: {self._outside}")
        return tuple(notes)


def find_places(maps: np.ndarray, path: Path, crop: bool) -> tuple[Places, tuple[str, ...]]:
    """Places of the archive's rows and columns in all maps of a file, (n, ..., width, 72), and what is to be said of them.

    The file is read a piece at a time. Raises InputError for counts outside, unless they are to be cropped.
    """
    width = maps.shape[-2]
    if width == N_IETA:
        return find_shift(np.asarray(maps[start:stop]) for start, stop in spans(maps, len(maps)))
    window = Window(crop)
    for start, stop in spans(maps, len(maps)):
        window.check(np.asarray(maps[start:stop]), f"{path}, rows {start} to {stop - 1}")
    return places_of(width), window.notes


def unknown(size: int) -> np.ndarray:
    return np.full(size, np.nan)
