"""DIALS and nanoDQMIO: Parquet with a row for each lumisection and depth, in any order, over any number of files.

A first pass reads the keys alone (run_number, ls_number, me, dataset, entries) and says where each map goes; a second one reads
the maps batch by batch and puts each in its place in a file of no name, which is gone with the process. So what is held in
memory is a batch and the keys, whatever the order and the size of row groups. `data` is (iphi, ieta).

`entries` is how often a histogram was filled: once an event in some, once a hit in most. A channel counts an event once, so it
is the number of events only if it is the same for all depths, no channel counts more, and the channels together count more;
unless that holds for every lumisection of a run it is left out, and said so.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, MAX_SOURCE, N_IETA, N_IPHI
from dqmstream.storage.imports.nested_lists import Ragged, batches, check_lists, dense, open_parquet
from dqmstream.storage.imports.places import is_width
from dqmstream.storage.imports.run_data import Dropped, RunData, Window, unknown

ELEMENT = "Hcal/DigiTask/Occupancy/depth"
_DEPTH = re.compile(rf"^/?{ELEMENT}/depth([1-7])$")
KEYS_AT_ONCE = 1 << 16
MAPS_AT_ONCE = 64
MAX_VALUES = 1 << 18
"""Of a row, whatever its monitoring element: 43 times a map of HCAL."""

Progress = Callable[[int, int], None]


@dataclass
class _Keys:
    """What each row of all files is of, one behind the other; depth 0 where it is no occupancy. dataset: place in datasets."""

    run: np.ndarray
    lumisection: np.ndarray
    depth: np.ndarray
    dataset: np.ndarray
    entries: np.ndarray
    datasets: list[str]
    others: dict[str, int]


@dataclass
class _Run:
    """A run's lumisections that have all depths, and where their maps lie: from map `first` of the file of no name."""

    run: int
    lumisection: np.ndarray
    first: int
    datasets: list[str]
    dropped: list[Dropped] = field(default_factory=list)


def read_dials(
    paths: Sequence[Path],
    depths: int | None,
    *,
    crop: bool = False,
    scratch: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> list[RunData]:
    """The runs of all these files, by number, of as many depths as the archive has.

    depths: None where nobody said how many. scratch: folder for the file of no name, as large as the maps. progress: rows done,
    rows in all. Raises InputError, with file and row, for what cannot be used.
    """
    files = [_open(path) for path in paths]
    keys = _read_keys(paths, files)
    wanted = _wanted(paths, keys, depths)
    runs, slots = _place(keys, wanted)
    element = f"{ELEMENT}/depth{wanted[0]}" if len(wanted) == 1 else ELEMENT
    sources = [_source(paths, run, element) for run in runs]
    maps = _Maps(sum(len(run.lumisection) for run in runs) * len(wanted), _dtype(files), scratch)
    window = Window(crop)
    _fill(paths, files, keys, slots, maps, window, progress)
    name = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    notes = list(window.notes)
    notes += [f"left out: {count} rows of {other}" for other, count in sorted(keys.others.items())]
    found: list[RunData] = []
    for run, source in zip(runs, sources, strict=True):
        n = len(run.lumisection)
        events, note = _events(keys, slots, run, maps, len(wanted))
        found.append(
            RunData(
                name,
                run.run,
                maps.view(run.first, n, len(wanted)),
                run.lumisection,
                events,
                unknown(n),
                source,
                tuple(run.dropped),
                (*note, *([] if found else notes)),  # what is of the files as a whole is said once
                row_is_in_file=False,
                dataset=source,
            )
        )
    return found


def _open(path: Path) -> Any:
    file = open_parquet(path, coded=("me", "dataset"))
    names = file.schema_arrow.names
    if missing := [name for name in ("run_number", "ls_number", "me", "data") if name not in names]:
        hint = " (rows with `mse` are what a model said, not maps)" if "mse" in names else ""
        raise InputError(f"{path} has no column {missing[0]}, which DIALS maps have{hint}; it has {', '.join(names)}")
    for name in ("run_number", "ls_number"):
        if not pa.types.is_integer(kind := file.schema_arrow.field(name).type):
            raise InputError(f"{path}: {name} is {kind}, not whole numbers")
    check_lists(path, file, "data", MAX_VALUES)
    return file


def _read_keys(paths: Sequence[Path], files: Sequence[Any]) -> _Keys:
    parts: list[tuple[np.ndarray, ...]] = []
    datasets: dict[str, int] = {}
    others: dict[str, int] = {}
    for path, file in zip(paths, files, strict=True):
        names = file.schema_arrow.names
        columns = [name for name in ("run_number", "ls_number", "me", "dataset", "entries") if name in names]
        if not file.metadata.num_rows:
            raise InputError(f"{path} holds no row")
        for batch in batches(path, file, columns, KEYS_AT_ONCE):
            given = dict(zip(batch.schema.names, batch.columns, strict=True))
            run, lumisection = (_whole(path, name, given[name]) for name in ("run_number", "ls_number"))
            elements, codes = _coded(path, "me", given["me"])
            depth = np.array([_depth(element) for element in elements])[codes]
            for code, count in zip(*np.unique(codes[depth == 0], return_counts=True), strict=True):
                others[elements[code]] = others.get(elements[code], 0) + int(count)
            dataset = np.full(len(run), -1)
            if "dataset" in given:
                named, codes = _coded(path, "dataset", given["dataset"])
                dataset = np.array([datasets.setdefault(value, len(datasets)) for value in named])[codes]
            entries = unknown(len(run))
            if "entries" in given:
                entries = np.asarray(given["entries"].to_numpy(zero_copy_only=False), np.float64)
            parts.append((run, lumisection, depth, dataset, entries))
    run, lumisection, depth, dataset, entries = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Keys(run, lumisection, depth, dataset, entries, list(datasets), others)


def _coded(path: Path, name: str, column: Any) -> tuple[list[str], np.ndarray]:
    """The texts of a column, and for each row the place of its own; a null is the text "null"."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    texts = ["null" if text is None else str(text) for text in column.dictionary.to_pylist()]
    places = np.asarray(column.indices.fill_null(len(texts)))
    if long := [text for text in texts if len(text) > MAX_SOURCE]:
        raise InputError(f"{path}: {name} holds {long[0][:40]!r}..., {len(long[0])} characters long, which is no name")
    return [*texts, "null"] if column.null_count else texts, places


def _depth(element: str) -> int:
    match = _DEPTH.match(element)
    return int(match[1]) if match else 0


def _whole(path: Path, name: str, column: Any) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path}: {name} holds a null")
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.int64)
    if ((values < 1) | (values > MAX_NUMBER)).any():
        raise InputError(f"{path}: {name} {values[(values < 1) | (values > MAX_NUMBER)][0]} is not in 1..{MAX_NUMBER}")
    return values


def _wanted(paths: Sequence[Path], keys: _Keys, depths: int | None) -> list[int]:
    """Depths that make a map of the archive, in order."""
    there = sorted(set(keys.depth[keys.depth > 0].tolist()))
    if not there:
        raise InputError(f"{paths[0]} holds no row of {ELEMENT}/depth<n>; it has {', '.join(sorted(keys.others)[:5])}")
    if len(there) == 1 and depths in (None, 1):
        return there
    if depths is None:
        raise InputError(
            f"{paths[0]} holds the depths {', '.join(map(str, there))}: give --depths {there[-1]} for an archive of them, "
            "or --depths 1 for the first alone"
        )
    wanted = list(range(1, depths + 1))
    if missing := [depth for depth in wanted if depth not in there]:
        raise InputError(f"{paths[0]} holds the depths {', '.join(map(str, there))} and not {missing[0]}, the archive {depths}")
    return wanted


def _place(keys: _Keys, wanted: Sequence[int]) -> tuple[list[_Run], np.ndarray]:
    """The runs, and for each row the number of its map, -1 where it is not taken."""
    slots = np.full(len(keys.run), -1, np.int64)
    is_wanted = np.isin(keys.depth, wanted)
    runs, first = [], 0
    for run in np.unique(keys.run[keys.depth > 0]).tolist():
        rows = np.flatnonzero((keys.run == run) & is_wanted)
        numbers, place = np.unique(keys.lumisection[rows], return_inverse=True)
        has = np.zeros((len(numbers), len(wanted)), bool)
        depth = np.searchsorted(wanted, keys.depth[rows])
        has[place, depth] = True
        whole = np.asarray(has.all(axis=1))
        at = np.cumsum(whole) - 1
        taken = whole[place]
        slots[rows[taken]] = first + at[place[taken]] * len(wanted) + depth[taken]
        of = sorted(set(keys.dataset[rows[taken]].tolist()) - {-1})
        found = _Run(run, numbers[whole], first, [keys.datasets[dataset] for dataset in of])
        of_depth = np.asarray(wanted)
        lacking = [tuple(of_depth[np.logical_not(there)].tolist()) for there in has[np.logical_not(whole)]]
        for missing in sorted(set(lacking)):
            which = "depth" if len(missing) == 1 else "depths"
            reason = f"{which} {', '.join(map(str, missing))} missing"
            found.dropped.append(Dropped(reason, lacking.count(missing)))
        if unasked := int(((keys.run == run) & (keys.depth > 0) & ~is_wanted).sum()):
            found.dropped.append(Dropped(f"of other depths than {wanted[0]} to {wanted[-1]}", unasked, "rows"))
        if repeats := int(taken.sum()) - int(whole.sum()) * len(wanted):
            found.dropped.append(Dropped("there before, with the same counts", repeats, "rows"))
        runs.append(found)
        first += int(whole.sum()) * len(wanted)
    return runs, slots


class _Maps:
    """Maps in a file of no name: written once each, in any order, then read through a memory map.

    largest, total: of each map, float64, (maps,).
    """

    def __init__(self, size: int, dtype: np.dtype, scratch: Path | None) -> None:
        self._dtype = dtype
        self._bytes = N_IETA * N_IPHI * dtype.itemsize
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  the views below outlive this object
        self._written = np.zeros(size, bool)
        self.largest, self.total = np.zeros(size), np.zeros(size)

    def put(self, slot: int, counts: np.ndarray) -> bool:
        """Write a map, (64, 72); False where the same one is there already with other counts."""
        counts = np.ascontiguousarray(counts, self._dtype)
        self._file.seek(slot * self._bytes)
        if self._written[slot]:
            return self._file.read(self._bytes) == counts.tobytes()
        self._file.write(counts.data)
        self._written[slot] = True
        self.largest[slot], self.total[slot] = counts.max(), counts.sum(dtype=np.float64)
        return True

    def view(self, first: int, lumisections: int, depths: int) -> np.ndarray:
        """Maps of a run: (lumisections, depths, 64, 72), on the disk."""
        shape = (lumisections, depths, N_IETA, N_IPHI)
        if not lumisections:
            return np.empty(shape, self._dtype)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", first * self._bytes, shape)


def _dtype(files: Sequence[Any]) -> np.dtype:
    """What holds the numbers of all files."""
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
    keys: _Keys,
    slots: np.ndarray,
    maps: _Maps,
    window: Window,
    progress: Progress,
) -> None:
    row = 0
    for path, file in zip(paths, files, strict=True):
        begins = row
        for batch in batches(path, file, ["data"], MAPS_AT_ONCE):
            here = np.flatnonzero(slots[row : row + len(batch)] >= 0)
            if len(here):
                counts = _counts(path, batch.column(0).take(here), here + row - begins)
                for place, one in zip((here + row).tolist(), counts, strict=True):
                    where = f"{path}, run {keys.run[place]}, lumisection {keys.lumisection[place]}, depth {keys.depth[place]}"
                    if not maps.put(int(slots[place]), window.of(one, where)):
                        raise InputError(f"{where}: there twice, with different counts")
            row += len(batch)
            progress(row, len(slots))


def _counts(path: Path, lists: Any, rows: np.ndarray) -> np.ndarray:
    """(n, ieta, 72) of lists (n, 72, ieta)."""
    try:
        counts = dense(lists, 2)
    except Ragged as error:
        raise InputError(f"{path}, row {int(rows[error.row])}: data: {error}") from error
    if counts.shape[1] != N_IPHI or not is_width(counts.shape[2]):
        raise InputError(
            f"{path}, row {int(rows[0])}: data is {counts.shape[1]}x{counts.shape[2]}, not 72x84 (iphi, ieta) or 72x64"
        )
    return counts.swapaxes(1, 2)


def _events(keys: _Keys, slots: np.ndarray, run: _Run, maps: _Maps, depths: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Events of each lumisection, where that is what `entries` is, and what is to be said of it."""
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


def _source(paths: Sequence[Path], run: _Run, element: str) -> str:
    if len(run.datasets) > 1:
        raise InputError(
            f"{paths[0]}, run {run.run}: of the data sets {' and '.join(run.datasets)}, and an archive holds one map of a "
            "lumisection: import the files of each into an archive of its own"
        )
    return f"{run.datasets[0]}#{element}" if run.datasets else ""
