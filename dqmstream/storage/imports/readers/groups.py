"""Group files: a folder a run, `Run355456/output__depth.npy` of shape (rows, 64, 72, depths, 1).

Beside it `run_ls_lumi_df.npy` tells of lumisections (a structured array by its fields, or a plain one of three columns: run,
lumisection, luminosity), and `meta_data.json` may name run, dataset and the lumisection of each row (`xaxis`). The group's
converter writes row k for lumisection k, so that row 0 is empty and the table has a line less than there are rows; and it
leaves maps of `hbhe` one row and column off, which `places` finds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, N_IPHI
from dqmstream.storage.imports.find import META_FILE, TABLE_FILE
from dqmstream.storage.imports.places import is_width
from dqmstream.storage.imports.readers.arrays import checked_number, load_array
from dqmstream.storage.imports.run_data import NO_LUMISECTION, Dropped, RunData, find_places, unknown
from dqmstream.storage.labels.luminosity import VALUES, LuminosityTable, make_table, name_columns

_FOLDER = re.compile(r"^Run(\d+)$")


def read_group(path: Path, crop: bool) -> tuple[RunData, LuminosityTable | None]:
    """The run whose maps lie at path, and what its own table says of luminosity. Raises InputError for what cannot be used."""
    match = _FOLDER.match(path.absolute().parent.name)
    if match is None:
        raise InputError(f"{path}: its folder does not tell the run; name it Run<number>")
    run = checked_number(path, int(match[1]))
    maps = load_array(path)
    if maps.ndim != 5 or maps.shape[4] != 1 or maps.shape[2] != N_IPHI or not is_width(maps.shape[1]) or not len(maps):
        raise InputError(f"{path} has shape {maps.shape}, and must have (lumisections, 64, 72, depths, 1)")
    if not 1 <= maps.shape[3] <= 7 or maps.dtype.kind not in "iuf":
        raise InputError(f"{path} holds {maps.shape[3]} depths of {maps.dtype}, and HCAL has 1 to 7, of numbers")
    counts = np.moveaxis(maps[..., 0], 3, 1)
    meta = _meta(path.with_name(META_FILE), run)
    table, left_out = _table(path.with_name(TABLE_FILE), run)
    places, notes = find_places(counts, path, crop)
    listed = None if table is None else table["lumisection"]
    numbers, told = _numbers(path, counts, listed, meta)
    rows, dropped = _taken(path, counts, numbers, listed)
    conditions = {name: unknown(len(rows)) for name in ("n_events", "pileup")}
    if table is not None:
        lines, there = _lines_of(table["lumisection"], numbers[rows])
        for name in conditions.keys() & table.keys():
            conditions[name][there] = table[name][lines[there]]
        if without := len(set(table["lumisection"].tolist()) - set(numbers[rows].tolist())):
            told = (*told, f"{TABLE_FILE} names {without} lumisections that have no map")
    data = RunData(
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
        places=places,
        dataset=_source(meta),
    )
    if table is None or not set(table) & set(VALUES):
        return data, None
    columns = {**table, "run": np.full(len(table["lumisection"]), run)}
    return data, make_table(path.with_name(TABLE_FILE), columns, left_out, may_be_sums=False)


def _numbers(
    path: Path, counts: np.ndarray, listed: np.ndarray | None, meta: dict[str, Any]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of the lumisection of each row, 0 where it is none, and what is to be said of it. listed: those of the table."""
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
    """Numbers of the rows as `meta_data.json` has them, where it has one for each: 0 and up."""
    axis = meta.get("xaxis")
    values = axis.get("values") if isinstance(axis, dict) and axis.get("label") == "ls" else None
    if not isinstance(values, list) or len(values) != size:
        return None
    if not all(type(value) is int and 0 <= value <= MAX_NUMBER for value in values):
        return None
    return np.array(values, np.int64)


def _taken(
    path: Path, counts: np.ndarray, numbers: np.ndarray, listed: np.ndarray | None
) -> tuple[np.ndarray, tuple[Dropped, ...]]:
    """Rows that are taken, in the order of their lumisections, each once, and what was left out.

    Raises InputError where a row that is no lumisection holds counts, or one is there twice with different maps.
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
    """Of each wanted lumisection, its line among those listed, and whether there is one."""
    order = np.argsort(listed, kind="stable")
    at = np.minimum(np.searchsorted(listed[order], wanted), len(listed) - 1)
    return order[at], listed[order][at] == wanted


def _table(path: Path, run: int) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...]]:
    """Columns of the table beside the maps, None where there is none, and what was left out of them."""
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


def _meta(path: Path, run: int) -> dict[str, Any]:
    """What `meta_data.json` says, empty where there is none. Raises InputError where it is of another run."""
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
    """Dataset and monitoring element, as far as they are named."""
    dataset, element = (meta.get(name) for name in ("dataset", "me"))
    if not isinstance(dataset, str):
        return ""
    return f"{dataset}#{element}" if isinstance(element, str) else dataset
