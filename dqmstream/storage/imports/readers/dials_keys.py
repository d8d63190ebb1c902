"""The first pass over DIALS files: the run, lumisection and depth of each row, and which rows make up which map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, MAX_SOURCE
from dqmstream.storage.imports.nested_lists import batches, check_lists, open_parquet
from dqmstream.storage.imports.run_file import Dropped, unknown

ELEMENT = "Hcal/DigiTask/Occupancy/depth"
KEYS = ("run_number", "ls_number", "me", "dataset")
_DEPTH = re.compile(rf"^/?{ELEMENT}/depth([1-7])$")
KEYS_AT_ONCE = 1 << 16
MAX_VALUES = 1 << 18
"""Most values of a row, whatever its monitoring element: 43 times a map of HCAL."""


@dataclass
class Keys:
    """Keys of the rows of all files, one file after another; each (rows,).

    depth: 0 for a row that is no occupancy map. dataset: place in `datasets`, -1 for none. others: number of rows of each
    other monitoring element.
    """

    run: np.ndarray
    lumisection: np.ndarray
    depth: np.ndarray
    dataset: np.ndarray
    entries: np.ndarray
    datasets: list[str]
    others: dict[str, int]


@dataclass
class RunKeys:
    """The lumisections of a run that have all depths. first: number of its first map among the maps of all runs."""

    run: int
    lumisection: np.ndarray
    first: int
    datasets: list[str]
    dropped: list[Dropped] = field(default_factory=list)


def open_dials(path: Path) -> Any:
    """A pyarrow ParquetFile with the columns of DIALS. Raises InputError for a file without them."""
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


def read_keys(paths: Sequence[Path], files: Sequence[Any]) -> Keys:
    """Keys of all rows. Raises InputError for a null, and for a number or name that cannot be."""
    parts: list[tuple[np.ndarray, ...]] = []
    datasets: dict[str, int] = {}
    others: dict[str, int] = {}
    for path, file in zip(paths, files, strict=True):
        names = file.schema_arrow.names
        columns = [name for name in (*KEYS, "entries") if name in names]
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
    return Keys(run, lumisection, depth, dataset, entries, list(datasets), others)


def _coded(path: Path, name: str, column: Any) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and for each row the place of its text among them. A null is the text "null"."""
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


def wanted_depths(paths: Sequence[Path], keys: Keys, depths: int | None) -> list[int]:
    """Depths that make up a map of the archive, in order.

    depths: number of depths of the archive, None where it is new and the user gave none. Raises InputError for files without
    them.
    """
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


def place_rows(keys: Keys, wanted: Sequence[int]) -> tuple[list[RunKeys], np.ndarray]:
    """The runs, and for each row the number of its map among those of all runs, -1 if it is left out: int64, (rows,)."""
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
        found = RunKeys(run, numbers[whole], first, [keys.datasets[dataset] for dataset in of])
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
