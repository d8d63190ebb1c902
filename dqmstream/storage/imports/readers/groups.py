"""Group files: a folder for each run, `Run355456/output__depth.npy` of shape (rows, 64, 72, depths, 1).

Beside it, `run_ls_lumi_df.npy` lists lumisections (a structured array, or a plain one of three columns: run, lumisection,
luminosity), and `meta_data.json` may hold run, dataset and the lumisection of each row (`xaxis`). The converter that makes
these files writes lumisection k to row k, so row 0 is empty and the table has one line less than there are rows. It leaves maps
of `hbhe` one row and column off, which `imports.binning` detects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, N_IPHI
from dqmstream.storage.imports.binning import is_width
from dqmstream.storage.imports.readers.arrays import checked_number, load_array
from dqmstream.storage.imports.readers.registry import Reader, ReadRequest, reader
from dqmstream.storage.imports.run_file import NO_LUMISECTION, Dropped, RunFile, unknown
from dqmstream.storage.imports.window import find_binning
from dqmstream.storage.labels.luminosity import VALUES, LuminosityTable, make_table
from dqmstream.storage.labels.named_columns import name_columns

MAP_FILE = "output__depth.npy"
TABLE_FILE, META_FILE = "run_ls_lumi_df.npy", "meta_data.json"
_FOLDER = re.compile(r"^Run(\d+)$")


@reader("groups")
class Groups(Reader):
    """`Run<number>/output__depth.npy`, and what lies beside it."""

    def takes(self, path: Path) -> bool:
        return path.name == MAP_FILE

    def is_companion(self, path: Path) -> bool:
        return path.name in (TABLE_FILE, META_FILE)

    def find(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(f"Run*/{MAP_FILE}"))

    def read(self, paths: Sequence[Path], request: ReadRequest) -> list[RunFile]:
        return [read_group(path, request.crop) for path in paths]


def read_group(path: Path, crop: bool = False) -> RunFile:
    """The run whose maps are at path, with the conditions of the table beside it. Raises InputError for what cannot be used.

    crop: leave out counts beyond |ieta| 32.
    """
    run = _run_of_folder(path)
    counts = _load_maps(path)
    meta = _read_meta(path.with_name(META_FILE), run)
    table, left_out = _read_table(path.with_name(TABLE_FILE), run)
    binning, notes = find_binning(counts, path, crop)
    listed = None if table is None else table["lumisection"]
    numbers, told = _numbers(path, counts, listed, meta)
    rows, dropped = _chosen_rows(path, counts, numbers, listed)
    conditions = {name: unknown(len(rows)) for name in ("n_events", "pileup")}
    luminosity = None
    if table is not None:
        lines, there = _lines_of(table["lumisection"], numbers[rows])
        for name in conditions.keys() & table.keys():
            conditions[name][there] = table[name][lines[there]]
        if without := len(set(table["lumisection"].tolist()) - set(numbers[rows].tolist())):
            told = (*told, f"{TABLE_FILE} names {without} lumisections that have no map")
        luminosity = _luminosity(path.with_name(TABLE_FILE), run, table, left_out)
    return RunFile(
        f"{path.absolute().parent.name}/{path.name}",
        run,
        counts,
        numbers[rows],
        conditions["n_events"],
        conditions["pileup"],
        _source(meta),
        dropped,
        (*notes, *told),
        rows,
        binning=binning,
        dataset=_source(meta),
        luminosity=luminosity,
    )


def _run_of_folder(path: Path) -> int:
    match = _FOLDER.match(path.absolute().parent.name)
    if match is None:
        raise InputError(f"{path}: its folder does not tell the run; name it Run<number>")
    return checked_number(path, int(match[1]))


def _load_maps(path: Path) -> np.ndarray:
    """Maps of the file: (rows, depths, width, 72), on the disk."""
    maps = load_array(path)
    if maps.ndim != 5 or maps.shape[4] != 1 or maps.shape[2] != N_IPHI or not is_width(maps.shape[1]) or not len(maps):
        raise InputError(f"{path} has shape {maps.shape}, and must have (lumisections, 64, 72, depths, 1)")
    if not 1 <= maps.shape[3] <= 7 or maps.dtype.kind not in "iuf":
        raise InputError(f"{path} holds {maps.shape[3]} depths of {maps.dtype}, and HCAL has 1 to 7, of numbers")
    return np.moveaxis(maps[..., 0], 3, 1)


def _luminosity(path: Path, run: int, table: dict[str, np.ndarray], left_out: tuple[str, ...]) -> LuminosityTable | None:
    """The table's conditions, to be filed as labels; None where it has none."""
    if not set(table) & set(VALUES):
        return None
    return make_table(path, {**table, "run": np.full(len(table["lumisection"]), run)}, left_out, may_be_sums=False)


def _numbers(
    path: Path, counts: np.ndarray, listed: np.ndarray | None, meta: dict[str, Any]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lumisection of each row, 0 for a row that holds none, and notes for the user. listed: lumisections of the table."""
    size = len(counts)
    by_row = np.arange(size)
    axis = _axis(meta, size)
    begins_empty = not np.any(counts[0])
    if listed is not None and len(listed) == size and not (begins_empty and axis is not None and axis[0] == 0):
        return listed, ()
    if axis is not None:
        return axis, () if axis[0] else (f"row k was taken for lumisection k, as {META_FILE} has it",)
    if listed is not None:
        if not begins_empty or listed.max() >= size:
            why = f"lumisection {listed.max()} has no row" if begins_empty else "row 0 is not empty"
            raise InputError(
                f"{path.with_name(TABLE_FILE)} has {len(listed)} lines, and there are {size} maps beside it; "
                f"row k is not lumisection k either, since {why}"
            )
        return by_row, ("row k was taken for lumisection k: row 0 is empty",)
    if begins_empty and size > 1:
        return by_row, (f"no {TABLE_FILE} beside it: row k was taken for lumisection k, since row 0 is empty",)
    return by_row + 1, (f"no {TABLE_FILE} beside it: row k was taken for lumisection k + 1",)


def _axis(meta: dict[str, Any], size: int) -> np.ndarray | None:
    """Lumisection of each row by `meta_data.json`, 0 and up; None unless it has one for each row."""
    axis = meta.get("xaxis")
    values = axis.get("values") if isinstance(axis, dict) and axis.get("label") == "ls" else None
    if not isinstance(values, list) or len(values) != size:
        return None
    if not all(type(value) is int and 0 <= value <= MAX_NUMBER for value in values):
        return None
    return np.array(values, np.int64)


def _chosen_rows(
    path: Path, counts: np.ndarray, numbers: np.ndarray, listed: np.ndarray | None
) -> tuple[np.ndarray, tuple[Dropped, ...]]:
    """Rows to import, in the order of their lumisections, each once, and what was left out.

    Raises InputError where row 0 is no lumisection and holds counts, or a lumisection is there twice with different counts.
    """
    taken, dropped = np.ones(len(numbers), bool), []
    for row in np.flatnonzero(numbers == 0).tolist():
        if np.any(counts[row]):
            raise InputError(f"{path}, row {row}: it holds counts, and is lumisection 0 by {META_FILE}; they begin with 1")
        taken[row] = False
        dropped.append(NO_LUMISECTION)
    if listed is not None:
        unlisted = [row for row in np.flatnonzero(taken & ~np.isin(numbers, listed)).tolist() if not np.any(counts[row])]
        taken[unlisted] = False
        dropped += [Dropped(f"empty, and not in {TABLE_FILE}", len(unlisted), "rows")] if unlisted else []
    places = np.flatnonzero(taken)
    unique, first, count = np.unique(numbers[places], return_index=True, return_counts=True)
    for number in unique[count > 1].tolist():
        one, *others = np.flatnonzero(numbers == number).tolist()
        if any(not np.array_equal(counts[one], counts[other]) for other in others):
            raise InputError(f"{path}: lumisection {number} is there twice, with different counts")
    if repeats := len(places) - len(first):
        dropped.append(Dropped("there before, with the same counts", repeats, "rows"))
    return places[first], tuple(dropped)


def _lines_of(listed: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each wanted lumisection, its line in the list, and whether it has one; both (n,)."""
    order = np.argsort(listed, kind="stable")
    at = np.minimum(np.searchsorted(listed[order], wanted), len(listed) - 1)
    return order[at], listed[order][at] == wanted


def _read_table(path: Path, run: int) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...]]:
    """Columns of the table beside the maps, None without a table, and notes of what was left out of them."""
    if not path.exists():
        return None, ()
    array = load_array(path)
    names = array.dtype.names
    if names is not None and array.ndim == 1:
        given = {name: np.asarray(array[name]) for name in names}
    elif names is None and array.ndim == 2 and array.shape[1] == 3:
        given = {name: np.asarray(array[:, place]) for place, name in enumerate(("run", "ls", "lumi"))}
    else:
        raise InputError(
            f"{path} is {array.dtype} of shape {array.shape}: "
            "give a structured array with fields run, ls, lumi, or three columns"
        )
    columns, left_out = name_columns(path, given)
    if "run" in columns and (other := columns["run"] != run).any():
        raise InputError(f"{path} speaks of run {columns['run'][np.argmax(other)]}, and lies in the folder of run {run}")
    return columns, left_out


def _read_meta(path: Path, run: int) -> dict[str, Any]:
    """Contents of `meta_data.json`, empty where there is none. Raises InputError where it names another run."""
    if not path.exists():
        return {}
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} is no JSON object")
    for name in ("run", "run_number", "RunId"):
        if name in given and str(given[name]) != str(run):
            raise InputError(f"{path} speaks of run {given[name]}, and lies in the folder of run {run}")
    return given


def _source(meta: dict[str, Any]) -> str:
    """Dataset and monitoring element as `meta_data.json` names them, empty if it does not."""
    dataset, element = (meta.get(name) for name in ("dataset", "me"))
    if not isinstance(dataset, str):
        return ""
    return f"{dataset}#{element}" if isinstance(element, str) else dataset
