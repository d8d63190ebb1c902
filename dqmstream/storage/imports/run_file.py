"""What every reader gives: a run as files hold it, with its maps still on the disk, and what was left out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA, N_IPHI, utf8
from dqmstream.storage.imports.binning import PLAIN, Binning
from dqmstream.storage.labels.luminosity import LuminosityTable
from dqmstream.storage.layout import ROWS_PER_CHUNK
from dqmstream.storage.scale import Scale, multiplied

PIECE_BYTES = 16 << 20
"""Most bytes of maps in memory while a run is read piece by piece."""


@dataclass(frozen=True)
class Dropped:
    """Lumisections, or rows of a file, that were left out, and why. what: "lumisections" or "rows"."""

    reason: str
    count: int
    what: str = "lumisections"


NO_LUMISECTION = Dropped("row 0, which is empty: row k is lumisection k", 1, "rows")


@dataclass(frozen=True, eq=False)
class RunFile:
    """A run as one file, or several, hold it.

    name: of the file. counts: maps on the disk (a memory map), (rows, width, 72) or (rows, depth, width, 72).
    lumisection: numbers of the n lumisections to import, int64, (n,), ascending, each once.
    events, pileup: of each lumisection, float64, (n,), nan where unknown.
    source: dataset and monitoring element, empty where unknown. dropped: what was left out. notes: for the user.
    rows: row in counts of each lumisection, (n,); None: all rows, in their order.
    row_is_in_file: whether these rows are rows of the file too, so that messages can name them.
    binning: where the archive's bins are in the maps. dataset: as the file or its name gives it, also when the user gave
    another source; empty where unknown. luminosity: conditions from a table beside the maps, to be filed as labels.
    scale: of the values in the file (`imports.scaling`). times: events by which shares are multiplied, (n,); None: not shares.
    off_whole: how far the products were from whole counts at most; None where there are none, or rows are interpolated.
    In name, source and dataset, bytes that are not UTF-8 are replaced by escapes. Raises InputError for arrays that do not fit
    together.
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
    binning: Binning = PLAIN
    dataset: str = ""
    luminosity: LuminosityTable | None = None
    scale: Scale = Scale.COUNTS
    times: np.ndarray | None = None
    off_whole: float | None = None

    def __post_init__(self) -> None:
        for name in ("name", "source", "dataset"):
            object.__setattr__(self, name, utf8(getattr(self, name)))
        if wrong := self._inconsistent():
            raise InputError(f"{self.name}, run {self.run}: its reader gives {wrong}")

    def _inconsistent(self) -> str:
        """What in the arrays does not fit together, empty if all does."""
        n = len(self.lumisection)
        if self.counts.ndim not in (3, 4) or self.counts.shape[-2:] != (self.binning.width, N_IPHI):
            return f"maps of shape {self.counts.shape}, not (..., {self.binning.width}, {N_IPHI})"
        if n and (self.lumisection[0] < 1 or (np.diff(self.lumisection) <= 0).any()):
            return "lumisections that do not ascend from 1 on, each once"
        if not (len(self.events) == len(self.pileup) == n):
            return f"{len(self.events)} events and {len(self.pileup)} pileups of {n} lumisections"
        if (len(self.counts) if self.rows is None else len(self.rows)) != n:
            return f"{len(self.counts) if self.rows is None else len(self.rows)} maps of {n} lumisections"
        return ""

    @property
    def depths(self) -> int:
        return 1 if self.counts.ndim == 3 else int(self.counts.shape[1])

    @property
    def size(self) -> int:
        """Number of lumisections to import."""
        return len(self.lumisection)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Shape of a map as `maps` gives it: (64, 72) or (depth, 64, 72)."""
        return (*self.counts.shape[1:-2], N_IETA, N_IPHI)

    def maps(self, which: slice | np.ndarray) -> np.ndarray:
        """Maps of these lumisections, by place in `lumisection`, in memory: (n, 64, 72) or (n, depth, 64, 72)."""
        maps = np.ascontiguousarray(self.binning.apply(self.counts[which if self.rows is None else self.rows[which]]))
        if self.times is None:
            return maps
        events = self.times[which].reshape(-1, *[1] * (maps.ndim - 1))
        return maps * events if self.scale is Scale.INTERPOLATED else multiplied(maps, events)

    def all_maps(self) -> np.ndarray:
        """Maps of all lumisections: a memory map where the file holds them as they are, otherwise in memory."""
        is_plain = self.rows is None and self.binning.is_plain and self.times is None
        return self.counts if is_plain else self.maps(slice(None))

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the first, maps) of the lumisections, piece by piece in memory."""
        for start, stop in spans(self.counts, self.size):
            yield start, self.maps(slice(start, stop))

    def only(self, good: np.ndarray, reason: str) -> RunFile:
        """The run without the lumisections that are not good, which are noted as dropped. good: bool, (n,)."""
        if good.all():
            return self
        rows = np.arange(len(self.counts)) if self.rows is None else self.rows
        return replace(
            self,
            lumisection=self.lumisection[good],
            events=self.events[good],
            pileup=self.pileup[good],
            rows=rows[good],
            times=None if self.times is None else self.times[good],
            dropped=(*self.dropped, Dropped(reason, int((~good).sum()))),
        )


def spans(maps: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of pieces of `size` maps like these, each of at most PIECE_BYTES and of whole chunks of an archive."""
    fit = PIECE_BYTES // (int(np.prod(maps.shape[1:])) * maps.itemsize)
    step = max(fit // ROWS_PER_CHUNK, 1) * ROWS_PER_CHUNK
    for start in range(0, size, step):
        yield start, min(start + step, size)


def unknown(size: int) -> np.ndarray:
    """A value for each lumisection where none is known: nan, (size,)."""
    return np.full(size, np.nan)
