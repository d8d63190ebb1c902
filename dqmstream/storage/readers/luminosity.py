"""Luminosity tables, as OMS gives them: a line a lumisection, in CSV, JSON or Parquet, with pileup and luminosities.

Columns, by any of their names: run (run_number, run_id), lumisection (lumisection_number, ls_number, ls), pileup,
delivered_lumi, recorded_lumi (or lumi), events (n_events, num_events). JSON is a list of objects, an object of lists, or the
answer of OMS (`{"data": [{"attributes": {...}}]}`). Units are those of the file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER

VALUES = ("pileup", "n_events", "delivered_lumi", "recorded_lumi")

_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("run", "run_number", "runid", "run_id"), "run"),
    **dict.fromkeys(("lumisection", "lumisection_number", "ls_number", "ls", "lumi_section", "lsid"), "lumisection"),
    **dict.fromkeys(("pileup", "pu", "avg_pileup"), "pileup"),
    **dict.fromkeys(("delivered_lumi", "delivered"), "delivered_lumi"),
    **dict.fromkeys(("recorded_lumi", "recorded", "lumi"), "recorded_lumi"),
    **dict.fromkeys(("events", "n_events", "num_events", "numevents"), "n_events"),
}


@dataclass(frozen=True, eq=False)
class LuminosityTable:
    """run: int64, (n,), -1 where the table names none. lumisection: int64, (n,). values: float64, (n,), by name, nan unknown.

    Sorted by run and lumisection, each once. ignored: columns that mean nothing here. repeats: lines that said the same again.
    """

    name: str
    run: np.ndarray
    lumisection: np.ndarray
    values: Mapping[str, np.ndarray]
    sha256: str
    ignored: tuple[str, ...] = ()
    repeats: int = 0

    @property
    def has_runs(self) -> bool:
        return bool((self.run >= 0).all())

    def for_run(self, run: int) -> LuminosityTable:
        """The table with this run where it names none."""
        return self if self.has_runs else replace(self, run=np.full(len(self.run), run))

    def of(self, run: int, lumisection: np.ndarray) -> dict[str, np.ndarray]:
        """Values of these lumisections, nan where the table does not have them; all (n,)."""
        here = self.run == run if self.has_runs else np.ones(len(self.run), bool)
        known, places = self.lumisection[here], np.flatnonzero(here)
        found = {name: np.full(len(lumisection), np.nan) for name in VALUES}
        if len(known):
            at = np.minimum(np.searchsorted(known, lumisection), len(known) - 1)
            there = known[at] == lumisection
            for name, values in self.values.items():
                found[name][there] = values[places[at[there]]]
        return found


def read_luminosity(path: Path) -> LuminosityTable:
    """The table at path. Raises InputError, with file, line and reason, for what cannot be used."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    readers = {".csv": _csv, ".json": _json, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} is no luminosity table: give .csv, .json or .parquet")
    return make_table(path, readers[path.suffix](path))


def make_table(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> LuminosityTable:
    """A table of these columns, under any of their names. path: for messages."""
    found, ignored = name_columns(path, columns)
    lumisection = found["lumisection"]
    if not set(found) & set(VALUES):
        raise InputError(f"{path} has none of the columns pileup, delivered_lumi, recorded_lumi, events")
    run = found.get("run", np.full(len(lumisection), -1))
    values = {name: found.get(name, np.full(len(lumisection), np.nan)) for name in VALUES}
    return _sorted(path, run, lumisection, values, ignored)


def name_columns(
    path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Columns under the names of this module, in the order of the file, and the names of those that mean nothing here.

    run and lumisection are int64, all else float64 and nan where unknown.
    """
    found: dict[str, np.ndarray] = {}
    ignored = []
    for name, values in columns.items():
        meant = _NAMES.get(re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()).strip("_"))
        if meant is None:
            ignored.append(str(name))
        elif meant in found:
            raise InputError(f"{path} has two columns for {meant}: leave one")
        else:
            found[meant] = _numbers(path, str(name), values)
    if "lumisection" not in found:
        raise InputError(f"{path} has no column lumisection_number (or ls_number, ls); it has {', '.join(map(str, columns))}")
    if not len(found["lumisection"]):
        raise InputError(f"{path} holds no line")
    for name, column in found.items():
        if name in ("run", "lumisection"):
            found[name] = _whole(path, name, column)
        elif (bad := ~np.isnan(column) & ~((column >= 0) & np.isfinite(column))).any():
            line = int(np.argmax(bad))
            raise InputError(f"{path}, line {line + 1} of data: {name} is {column[line]}")
    return found, tuple(ignored)


def _sorted(
    path: Path, run: np.ndarray, lumisection: np.ndarray, values: dict[str, np.ndarray], ignored: tuple[str, ...]
) -> LuminosityTable:
    order = np.lexsort((lumisection, run))
    run, lumisection = run[order], lumisection[order]
    values = {name: column[order] for name, column in values.items()}
    again = np.append(False, (np.diff(run) == 0) & (np.diff(lumisection) == 0))
    for name, column in values.items():
        differs = again & ~np.append(True, (column[1:] == column[:-1]) | (np.isnan(column[1:]) & np.isnan(column[:-1])))
        if differs.any():
            at = int(np.argmax(differs))
            raise InputError(f"{path} names lumisection {lumisection[at]} twice, with {name} {column[at - 1]} and {column[at]}")
    run, lumisection = run[~again], lumisection[~again]
    values = {name: column[~again] for name, column in values.items()}
    digest = hashlib.sha256(b"luminosity")
    for column in (run.astype("<i8"), lumisection.astype("<i8"), *(values[name].astype("<f8") for name in VALUES)):
        digest.update(column.tobytes())
    return LuminosityTable(path.name, run, lumisection, values, digest.hexdigest(), ignored, int(again.sum()))


def _numbers(path: Path, name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """float64; what is empty or null is nan."""
    empty = ("", "nan", "null", "none", "-")
    out = np.empty(len(values))
    for line, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        if value is None or (isinstance(value, str) and value.strip().lower() in empty):
            out[line] = np.nan
            continue
        try:
            if isinstance(value, bool):
                raise ValueError
            out[line] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {line + 1} of data: {name} is {value!r}, no number") from error
    return out


def _whole(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if (bad := ~((values >= 1) & (values <= MAX_NUMBER) & (np.floor(values) == values))).any():
        line = int(np.argmax(bad))
        raise InputError(f"{path}, line {line + 1} of data: {name} is {values[line]}, not a number in 1..{MAX_NUMBER}")
    return values.astype(np.int64)


def _csv(path: Path) -> dict[str, list[str | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, strict=True)
            columns: dict[str, list[str | None]] = {name: [] for name in lines.fieldnames or ()}
            for number, line in enumerate(lines, start=2):
                if None in line or None in line.values():
                    raise InputError(f"{path}, line {number} does not have the {len(columns)} columns of the first line")
                for name in columns:
                    columns[name].append(line[name])
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    return columns


def _json(path: Path) -> dict[str, list[Any]]:
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(given, dict) and isinstance(given.get("data"), list):
        given = [line.get("attributes", line) if isinstance(line, dict) else line for line in given["data"]]
    if isinstance(given, list) and given and all(isinstance(line, dict) for line in given):
        names = dict.fromkeys(name for line in given for name in line)
        return {name: [line.get(name) for line in given] for name in names}
    if isinstance(given, dict) and given and all(isinstance(column, list) for column in given.values()):
        if len({len(column) for column in given.values()}) > 1:
            raise InputError(f"{path}: its columns are not equally long")
        return dict(given)
    raise InputError(f"{path} is no table: give a list of objects, an object of lists, or the answer of OMS")


def _parquet(path: Path) -> dict[str, list[Any]]:
    from dqmstream.storage.readers.nested import batches, open_parquet

    file = open_parquet(path)
    columns: dict[str, list[Any]] = {name: [] for name in file.schema_arrow.names}
    for batch in batches(path, file, list(columns), 1 << 16):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            columns[name] += column.to_pylist()
    return columns
