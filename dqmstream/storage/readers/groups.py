"""Group files: a folder a run, `Run355456/output__depth.npy` of shape (lumisections, 64, 72, depths, 1).

Beside it `run_ls_lumi_df.npy` numbers the lumisections (a structured array by its fields, or a plain one of three columns: run,
lumisection, luminosity), and `meta_data.json` may name run and dataset.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IPHI
from dqmstream.storage.readers.arrays import checked_number, load_array
from dqmstream.storage.readers.find import META_FILE, TABLE_FILE
from dqmstream.storage.readers.luminosity import VALUES, LuminosityTable, make_table, name_columns
from dqmstream.storage.readers.runs import Dropped, Middle, RunData, is_width, unknown

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
    middle = Middle(crop)
    counts, size = middle.check(np.moveaxis(maps[..., 0], 3, 1), path), len(maps)
    columns = _columns(path.with_name(TABLE_FILE), run, size)
    notes = middle.notes
    if columns is None:
        notes = (*notes, f"no {TABLE_FILE} beside it: row k was taken for lumisection k + 1")
        columns = {"lumisection": np.arange(1, size + 1)}
    rows, dropped = _each_once(path, counts, columns["lumisection"])
    data = RunData(
        f"{path.absolute().parent.name}/{path.name}",
        run,
        counts,
        columns["lumisection"][rows],
        columns.get("n_events", unknown(size))[rows],
        columns.get("pileup", unknown(size))[rows],
        _source(path.with_name(META_FILE), run),
        dropped,
        notes,
        rows,
    )
    has_values = bool(set(columns) & set(VALUES))
    return data, make_table(path.with_name(TABLE_FILE), {**columns, "run": np.full(size, run)}) if has_values else None


def _each_once(path: Path, counts: np.ndarray, lumisection: np.ndarray) -> tuple[np.ndarray, tuple[Dropped, ...]]:
    """Rows in the order of their lumisections, each once. Raises InputError where one is there twice with different maps."""
    numbers, rows, count = np.unique(lumisection, return_index=True, return_counts=True)
    for number in numbers[count > 1].tolist():
        first, *others = np.flatnonzero(lumisection == number).tolist()
        if any(not np.array_equal(counts[first], counts[other]) for other in others):
            raise InputError(f"{path}: lumisection {number} is there twice, with different counts")
    repeats = len(lumisection) - len(rows)
    return rows, (Dropped("there before, with the same counts", repeats, "rows"),) if repeats else ()


def _columns(path: Path, run: int, size: int) -> dict[str, np.ndarray] | None:
    """Columns of the table beside the maps, a line for each of them; None where there is none."""
    if not path.exists():
        return None
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
    columns, _ = name_columns(path, given)
    if len(columns["lumisection"]) != size:
        raise InputError(f"{path} has {len(columns['lumisection'])} lines, and there are {size} maps beside it")
    if "run" in columns and (other := columns["run"] != run).any():
        raise InputError(f"{path} speaks of run {columns['run'][np.argmax(other)]}, and lies in the folder of run {run}")
    return columns


def _source(path: Path, run: int) -> str:
    """Dataset and monitoring element, as far as `meta_data.json` names them. Raises InputError where it is of another run."""
    if not path.exists():
        return ""
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} is no JSON object")
    for name in ("run", "run_number", "RunId"):
        if name in given and str(given[name]) != str(run):
            raise InputError(f"{path} speaks of run {given[name]}, and lies in the folder of run {run}")
    dataset, element = (given.get(name) for name in ("dataset", "me"))
    if not isinstance(dataset, str):
        return ""
    return f"{dataset}#{element}" if isinstance(element, str) else dataset
