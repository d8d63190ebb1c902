"""DIALS and nanoDQMIO: Parquet with a row for each lumisection and depth, in any order, in any number of files.

A first pass (`dials_keys`) reads the keys alone: run_number, ls_number, me, dataset, entries. A second pass reads the maps
batch by batch and writes each to its place in a temporary file without a name, which the system removes with the process.
Memory holds a batch and the keys, whatever the order of rows and the size of row groups. `data` is (iphi, ieta).

`entries` is how often a histogram was filled: once an event in some files, once a hit in most. A channel counts an event at
most once, so `entries` is the number of events only if it is the same for all depths, at least the largest count of a channel,
and less than the sum of all channels. Unless that holds for every lumisection of a run, it is not used, and a note says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA, N_IPHI
from dqmstream.storage.imports.binning import is_width
from dqmstream.storage.imports.nested_lists import Ragged, batches, column_names, dense, has_rows
from dqmstream.storage.imports.readers.dials_keys import (
    ELEMENT,
    KEYS,
    Keys,
    RunKeys,
    open_dials,
    place_rows,
    read_keys,
    wanted_depths,
)
from dqmstream.storage.imports.readers.registry import Reader, ReadRequest, reader
from dqmstream.storage.imports.run_file import RunFile, unknown
from dqmstream.storage.imports.window import Window

MAPS_AT_ONCE = 64

Progress = Callable[[int, int], None]


@reader("dials")
class Dials(Reader):
    """Parquet files of DIALS, also in folders named `key=value`."""

    def takes(self, path: Path) -> bool:
        return path.suffix.lower() == ".parquet"

    def find(self, folder: Path) -> list[Path]:
        """Raises InputError where the key of a folder is a column that its files lack."""
        found: list[Path] = []
        for part in sorted(path for path in folder.iterdir() if path.is_dir() and "=" in path.name):
            files = [path for path in sorted(part.iterdir()) if self.takes(path)]
            key = part.name.partition("=")[0]
            for file in files:
                if key in KEYS and not file.name.startswith(".") and key not in column_names(file):
                    raise InputError(
                        f"{file} has no column {key}, which is in the name of its folder alone: write the files without "
                        f"partitions by {key}"
                    )
            found += files + self.find(part)
        return found

    def why_left_out(self, path: Path, is_named: bool) -> str:
        return "" if has_rows(path) else "holds no row: left out"

    def read(self, paths: Sequence[Path], request: ReadRequest) -> list[RunFile]:
        return read_dials(paths, request.depths, crop=request.crop, scratch=request.scratch, progress=request.progress)


def read_dials(
    paths: Sequence[Path],
    depths: int | None,
    *,
    crop: bool = False,
    scratch: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> list[RunFile]:
    """The runs of all these files, in the order of their numbers.

    depths: of the archive, None where it is new and the user gave none. crop: leave out counts beyond |ieta| 32.
    scratch: folder for the temporary file, which is as large as the maps. progress: rows done, rows in all. Raises InputError,
    with file and row, for what cannot be used.
    """
    files = [open_dials(path) for path in paths]
    keys = read_keys(paths, files)
    wanted = wanted_depths(paths, keys, depths)
    runs, slots = place_rows(keys, wanted)
    element = f"{ELEMENT}/depth{wanted[0]}" if len(wanted) == 1 else ELEMENT
    sources = [_source(paths, run, element) for run in runs]
    maps = ScratchMaps(sum(len(run.lumisection) for run in runs) * len(wanted), _dtype(files), scratch)
    window = Window(crop)
    _fill(paths, files, keys, slots, maps, window, progress)
    name = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    notes = list(window.notes)
    notes += [f"left out: {count} rows of {other}" for other, count in sorted(keys.others.items())]
    found: list[RunFile] = []
    for run, source in zip(runs, sources, strict=True):
        n = len(run.lumisection)
        events, note = _events(keys, slots, run, maps, len(wanted))
        found.append(
            RunFile(
                name,
                run.run,
                maps.view(run.first, n, len(wanted)),
                run.lumisection,
                events,
                unknown(n),
                source,
                tuple(run.dropped),
                (*note, *([] if found else notes)),  # notes on the files as a whole are given once
                row_is_in_file=False,
                dataset=source,
            )
        )
    return found


class ScratchMaps:
    """Maps in a temporary file without a name: written in any order, each once, then read through a memory map.

    largest, total: largest count and sum of each map, float64, (maps,).
    """

    def __init__(self, size: int, dtype: np.dtype, scratch: Path | None) -> None:
        self._dtype = dtype
        self._bytes = N_IETA * N_IPHI * dtype.itemsize
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  the views below outlive this object
        self._written = np.zeros(size, bool)
        self.largest, self.total = np.zeros(size), np.zeros(size)

    def put(self, slot: int, counts: np.ndarray) -> bool:
        """Write a map, (64, 72), unless it was written before. False if it was, with other counts."""
        counts = np.ascontiguousarray(counts, self._dtype)
        self._file.seek(slot * self._bytes)
        if self._written[slot]:
            return self._file.read(self._bytes) == counts.tobytes()
        self._file.write(counts.data)
        self._written[slot] = True
        self.largest[slot], self.total[slot] = counts.max(), counts.sum(dtype=np.float64)
        return True

    def view(self, first: int, lumisections: int, depths: int) -> np.ndarray:
        """Maps of a run, a memory map: (lumisections, depths, 64, 72)."""
        shape = (lumisections, depths, N_IETA, N_IPHI)
        if not lumisections:
            return np.empty(shape, self._dtype)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", first * self._bytes, shape)


def _dtype(files: Sequence[Any]) -> np.dtype:
    """A dtype that holds the counts of all files."""
    kinds = []
    for file in files:
        kind = file.schema_arrow.field("data").type
        while hasattr(kind, "value_type"):
            kind = kind.value_type
        kinds.append(
            np.dtype(kind.to_pandas_dtype()) if pa.types.is_floating(kind) or pa.types.is_integer(kind) else np.float64
        )
    return np.result_type(*kinds)


def _fill(
    paths: Sequence[Path],
    files: Sequence[Any],
    keys: Keys,
    slots: np.ndarray,
    maps: ScratchMaps,
    window: Window,
    progress: Progress,
) -> None:
    """The second pass: write the map of each row to its place. Raises InputError for one that is there with other counts."""
    row = 0
    for path, file in zip(paths, files, strict=True):
        begins = row
        for batch in batches(path, file, ["data"], MAPS_AT_ONCE):
            here = np.flatnonzero(slots[row : row + len(batch)] >= 0)
            if len(here):
                counts = _counts(path, batch.column(0).take(here), here + row - begins)
                for place, one in zip((here + row).tolist(), counts, strict=True):
                    where = f"{path}, run {keys.run[place]}, lumisection {keys.lumisection[place]}, depth {keys.depth[place]}"
                    if not maps.put(int(slots[place]), window.cut(one, where)):
                        raise InputError(f"{where}: there twice, with different counts")
            row += len(batch)
            progress(row, len(slots))


def _counts(path: Path, lists: Any, rows: np.ndarray) -> np.ndarray:
    """Maps (n, ieta, 72) from lists (n, 72, ieta) of these rows of the file."""
    try:
        counts = dense(lists, 2)
    except Ragged as error:
        raise InputError(f"{path}, row {int(rows[error.row])}: data: {error}") from error
    if counts.shape[1] != N_IPHI or not is_width(counts.shape[2]):
        raise InputError(
            f"{path}, row {int(rows[0])}: data is {counts.shape[1]}x{counts.shape[2]}, not 72x84 (iphi, ieta) or 72x64"
        )
    return counts.swapaxes(1, 2)


def _events(keys: Keys, slots: np.ndarray, run: RunKeys, maps: ScratchMaps, depths: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Events of each lumisection of the run, nan unless `entries` counts events, and notes for the user."""
    n = len(run.lumisection)
    inside = (slots >= run.first) & (slots < run.first + n * depths)
    entries = unknown(n * depths)
    entries[slots[inside] - run.first] = keys.entries[inside]
    if np.isnan(entries).all():
        return unknown(n), ()
    by_map = entries.reshape(n, depths)
    span = slice(run.first, run.first + n * depths)
    largest, total = (column[span].reshape(n, depths).max(axis=1) for column in (maps.largest, maps.total))
    events = by_map[:, 0]
    fine = (by_map == events[:, None]).all(axis=1) & (events >= largest) & ((events < total) | (total == 0))
    if fine.all() and (total > 0).any():
        return events.copy(), ("entries were taken for the number of events",)
    return unknown(n), ("entries count hits, not events: left out",)


def _source(paths: Sequence[Path], run: RunKeys, element: str) -> str:
    """Dataset and monitoring element of the run. Raises InputError where its rows are of two data sets."""
    if len(run.datasets) > 1:
        raise InputError(
            f"{paths[0]}, run {run.run}: of the data sets {' and '.join(run.datasets)}, and an archive holds one map of a "
            "lumisection: import the files of each into an archive of its own"
        )
    return f"{run.datasets[0]}#{element}" if run.datasets else ""
