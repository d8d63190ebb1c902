"""What every reader of lumisections gives: one run, its maps still on the disk, and what was left out of it and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA
from dqmstream.storage.layout import ROWS_PER_CHUNK

PIECE_BYTES = 16 << 20
"""Of maps that are held at once while a run goes by."""


@dataclass(frozen=True)
class Dropped:
    """Lumisections, or rows of a file, that were not taken. what: "lumisections" or "rows"."""

    reason: str
    count: int
    what: str = "lumisections"


@dataclass(frozen=True, eq=False)
class RunData:
    """A run as one file, or several, hold it.

    name: of the files. counts: (rows, 64, 72) or (rows, depth, 64, 72), on the disk (a memory map). lumisection: numbers of
    those that are taken, int64, (n,), ascending. events, pileup: float64, (n,), nan where unknown. source: dataset and
    monitoring element, empty where unknown. notes: what a reader of the result must know. rows: places in counts of the
    lumisections, (n,); None: all of them. row_is_in_file: whether these are rows of the file, too.
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

    @property
    def depths(self) -> int:
        return 1 if self.counts.ndim == 3 else int(self.counts.shape[1])

    @property
    def size(self) -> int:
        """Lumisections that are taken."""
        return len(self.lumisection)

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the first, maps) of the taken lumisections, a piece at a time in memory."""
        for start, stop in spans(self.counts, self.size):
            places = slice(start, stop) if self.rows is None else self.rows[start:stop]
            yield start, np.ascontiguousarray(self.counts[places])

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


class Middle:
    """The 64 rows of ieta in the middle of wider maps, and what lay outside of them.

    crop: leave out what lies outside; else a count there is an InputError, since the archive's maps end at |ieta| 32.
    """

    def __init__(self, crop: bool) -> None:
        self._crop = crop
        self._cells: np.ndarray | None = None
        self.counts = 0.0

    def of(self, maps: np.ndarray, where: str) -> np.ndarray:
        """maps: (n, ..., width, 72), width 64 or more and even; returns (n, ..., 64, 72)."""
        edge = (maps.shape[-2] - N_IETA) // 2
        if not edge:
            return maps
        outside = np.delete(maps, np.s_[edge : edge + N_IETA], axis=-2)
        filled = (outside != 0) & ~np.isnan(outside)
        if filled.any():
            cells = filled.any(axis=tuple(range(maps.ndim - 2)))
            self._cells = cells if self._cells is None else self._cells | cells
            self.counts += float(np.nansum(outside))
            if not self._crop:
                raise InputError(
                    f"{where}: {int(cells.sum())} cells beyond |ieta| 32 hold {self.counts:g} counts, and the archive's maps "
                    "end there (rows are the middle 64): give --crop to leave them out"
                )
        return maps[..., edge : edge + N_IETA, :]

    def check(self, maps: np.ndarray, path: Path) -> np.ndarray:
        """`of` for all maps of a file, (n, ..., width, 72), read a piece at a time; the result is still on the disk."""
        edge = (maps.shape[-2] - N_IETA) // 2
        for start, stop in spans(maps, len(maps) if edge else 0):
            self.of(np.asarray(maps[start:stop]), f"{path}, rows {start} to {stop - 1}")
        return maps[..., edge : edge + N_IETA, :]

    @property
    def notes(self) -> tuple[str, ...]:
        if self._cells is None:
            return ()
        return (f"cropped: {self.counts:g} counts in {int(self._cells.sum())} cells beyond |ieta| 32",)


def is_width(width: int) -> bool:
    """Whether maps of so many rows of ieta have 64 in the middle."""
    return width >= N_IETA and (width - N_IETA) % 2 == 0


def unknown(size: int) -> np.ndarray:
    return np.full(size, np.nan)
