"""Conditions by lumisection: pileup, events and luminosities, as OMS, brilcalc, HLT rates or a table of one's own give them.

Columns, by any of their names: run (run_number, run:fill), lumisection (lumisection_number, ls_number, ls), pileup (avgpu),
delivered_lumi and recorded_lumi (delivered_lumi_per_lumisection, delivered(/ub), lumi), events (n_events), or path_name and
rate of triggers. Units are those of the file. What a file may look like: `readers.tables`.

The luminosities of the result are of each lumisection alone. In answers of OMS `delivered_lumi` is a sum over the run: it is
not used where `delivered_lumi_per_lumisection` stands beside it, and differenced where it stands alone. A bad line or value is
left out and told; a file of which nothing is left is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, MAX_PILEUP
from dqmstream.storage.labels.cumulative_columns import own_of_sum
from dqmstream.storage.labels.tables import join_pages, read_columns
from dqmstream.storage.labels.trigger_rates import ZERO_BIAS, events_of_rates

VALUES = ("pileup", "n_events", "delivered_lumi", "recorded_lumi")

_OWN = "_per_lumisection"
_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("run", "run_number", "runid", "run_id", "run_fill"), "run"),
    **dict.fromkeys(("lumisection", "lumisection_number", "ls_number", "ls", "lumi_section", "lsid"), "lumisection"),
    "first_lumisection_number": "lumisection",
    **dict.fromkeys(("pileup", "pu", "avg_pileup", "avgpu"), "pileup"),
    **dict.fromkeys(("delivered_lumi", "delivered"), "delivered_lumi"),
    **dict.fromkeys(("recorded_lumi", "recorded", "lumi"), "recorded_lumi"),
    **{name + _OWN: name for name in ("delivered_lumi", "recorded_lumi")},
    **dict.fromkeys(("events", "n_events", "num_events", "numevents"), "n_events"),
}
_UNIT = re.compile(r"\(([^)]*)\)")
_PAIR = re.compile(r"^\s*(\d+):\d+\s*$")
"""Run and fill, or a lumisection and its number in CMS (0 where CMS took no data), as brilcalc writes them."""

_NEGLIGIBLE: Mapping[str, float] = {"pileup": 1e-2, "delivered_lumi": 1e-6, "recorded_lumi": 1e-6}
_LARGEST: Mapping[str, float] = {"pileup": MAX_PILEUP, "n_events": MAX_NUMBER}
"""More is no value of a lumisection. What --max-events and the maps allow, the import asks."""


@dataclass(frozen=True, eq=False)
class LuminosityTable:
    """run: int64, (n,), -1 where the table names none. lumisection: int64, (n,). values: float64, (n,), by name, nan unknown.

    Sorted by run and lumisection, each once. ignored: columns that mean nothing here. repeats: lines that said the same again.
    notes: what was left out, changed or taken in one of two possible ways.
    """

    name: str
    run: np.ndarray
    lumisection: np.ndarray
    values: Mapping[str, np.ndarray]
    sha256: str
    ignored: tuple[str, ...] = ()
    repeats: int = 0
    notes: tuple[str, ...] = ()

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


def read_luminosity(path: Path, hlt_path: str = ZERO_BIAS) -> LuminosityTable:
    """The table at path. Raises InputError, with file and reason, for what cannot be used and for a part of a longer answer."""
    return read_tables([path], hlt_path)[0]


def read_tables(paths: Sequence[Path], hlt_path: str = ZERO_BIAS) -> list[LuminosityTable]:
    """The tables of these files, pages of one answer joined. hlt_path: trigger whose rate gives events, without its version."""
    made = []
    for table in join_pages([read_columns(path) for path in paths]):
        table = events_of_rates(table, hlt_path)
        made.append(make_table(table.path, table.values, table.notes))
    return made


def make_table(
    path: Path,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    notes: Sequence[str] = (),
    *,
    may_be_sums: bool = True,
) -> LuminosityTable:
    """A table of these columns, under any of their names.

    path: for messages. notes: what is known of them already. may_be_sums: whether luminosities may be sums over the run.
    """
    named = _Named(path, columns)
    if not may_be_sums:
        named.sums.clear()
    found = named.good()
    if not set(found) & set(VALUES):
        raise InputError(f"{path} has none of the columns pileup, delivered_lumi, recorded_lumi, events")
    lumisection = found["lumisection"].astype(np.int64)
    run = found.get("run", np.full(len(lumisection), -1)).astype(np.int64)
    values = {name: found.get(name, np.full(len(lumisection), np.nan)) for name in VALUES}
    return _sorted(path, run, lumisection, values, named, notes)


def name_columns(
    path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Columns under the names of this module, in the order of the file, and what of them was left out or changed.

    run and lumisection are int64, all else float64 nan where unknown or bad. Raises InputError for a bad run or lumisection.
    """
    named = _Named(path, columns)
    for reason in (named.reasons[name] for name, bad in named.bad.items() if bad.any() and name in ("run", "lumisection")):
        raise InputError(f"{path}, {reason}")
    named.good()
    whole = ("run", "lumisection")
    found = {name: column.astype(np.int64 if name in whole else np.float64) for name, column in named.found.items()}
    return found, tuple(named.notes)


class _Named:
    """Columns under the names of this module, and which of their entries are bad.

    found: float64, (n,), by name, nan where unknown or bad. bad: bool, (n,), by name. reasons: of the first bad entry, by name.
    sums: names of columns that may be sums over the run.
    """

    def __init__(self, path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        self._path = path
        self.found: dict[str, np.ndarray] = {}
        self.bad: dict[str, np.ndarray] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.sums: set[str] = set()
        unused: list[str] = []
        given = {_plain(name) for name in columns}
        for name, values in columns.items():
            meant = _NAMES.get(plain := _plain(name))
            if meant is None:
                unused.append(str(name))
            elif meant == plain and plain + _OWN in given:
                self.notes.append(f"{name} not used: {plain + _OWN} stands beside it, and is of the lumisection alone")
            elif meant in self.found:
                raise InputError(f"{path} has two columns for {meant}: leave one")
            else:
                self._take(str(name), meant, values)
                if meant == plain and plain + _OWN in _NAMES:
                    self.sums.add(meant)
        if "lumisection" not in self.found:
            raise InputError(
                f"{path} has no column lumisection_number (or ls_number, ls); it has {', '.join(map(str, columns)) or 'none'}"
            )
        if not len(self.found["lumisection"]):
            raise InputError(f"{path} holds no line")
        self.ignored = tuple(unused)
        if unused := [name for name in unused if name.strip()]:
            self.notes.append(f"columns not used: {', '.join(unused)}")

    def good(self) -> dict[str, np.ndarray]:
        """The columns, without lines of no run or lumisection; notes say what was left out. Raises InputError if all is bad."""
        kept = np.ones(len(self.found["lumisection"]), bool)
        for name, bad in self.bad.items():
            known = ~np.isnan(self.found[name])
            if bad.any() and not known.any():
                raise InputError(f"{self._path}, {self.reasons[name]}")
            if bad.any():
                what = "lines" if name in ("run", "lumisection") else f"values of {name}"
                self.notes.append(f"{int(bad.sum())} {what} left out, the first in {self.reasons[name]}")
            if name in ("run", "lumisection"):
                kept &= known
        if not kept.any():
            raise InputError(f"{self._path} holds no line with both run and lumisection")
        return {name: column[kept] for name, column in self.found.items()}

    def _take(self, name: str, meant: str, given: Sequence[Any] | np.ndarray) -> None:
        values, bad, reason = _numbers(name, meant, given)
        if meant in ("run", "lumisection"):
            wrong = ~((values >= 1) & (values <= MAX_NUMBER) & (np.floor(values) == values))
            says = f"not a number in 1..{MAX_NUMBER}"
        else:
            self._clip(meant, values)
            wrong = (values < 0) | np.isinf(values) | (values > _LARGEST.get(meant, np.inf))
            says = "which cannot be"
        if not bad.any() and wrong.any():
            line = int(np.argmax(wrong))
            reason = f"line {line + 1} of data: {meant} is {values[line]}, {says}"
        bad |= wrong
        self.found[meant], self.bad[meant] = np.where(bad, np.nan, values), bad
        if reason:
            self.reasons[meant] = reason
        if unit := _UNIT.search(name):
            self.notes.append(f"{meant} is in {unit[1]}")

    def _clip(self, meant: str, values: np.ndarray) -> None:
        """Take negative values next to nothing, as instruments without beam give them, for 0."""
        finite = values[np.isfinite(values)]
        if meant not in _NEGLIGIBLE or not len(finite):
            return
        lowest = -max(_NEGLIGIBLE[meant], 1e-3 * float(finite.max()))
        if (below := (values < 0) & (values >= lowest)).any():
            self.notes.append(f"{int(below.sum())} values of {meant} below 0 (the lowest {values[below].min():.3g}) taken as 0")
            values[below] = 0.0


def _sorted(
    path: Path,
    run: np.ndarray,
    lumisection: np.ndarray,
    values: dict[str, np.ndarray],
    named: _Named,
    before: Sequence[str],
) -> LuminosityTable:
    order = np.lexsort((lumisection, run))
    run, lumisection = run[order], lumisection[order]
    again = np.append(False, (np.diff(run) == 0) & (np.diff(lumisection) == 0))
    starts = np.flatnonzero(~again)
    run, lumisection = run[starts], lumisection[starts]
    notes = [*before, *named.notes]
    for name, column in values.items():
        least, most = (reduce.reduceat(column[order], starts) for reduce in (np.fmin, np.fmax))
        values[name] = np.where(least < most, np.nan, least)
        if (differs := least < most).any():
            at = int(np.argmax(differs))
            of = f"run {run[at]}, lumisection {lumisection[at]}" if run[at] >= 0 else f"lumisection {lumisection[at]}"
            said = f"names {of} twice, with {name} {least[at]} and {most[at]}"
            if not (~np.isnan(values[name])).any():
                raise InputError(f"{path} {said}")
            notes.append(f"{int(differs.sum())} values of {name} left out: it {said}")
    for name in sorted(named.sums):
        values[name], note = own_of_sum(name, run, lumisection, values[name], values["pileup"])
        notes += [note] if note else []
    digest = hashlib.sha256(b"luminosity")
    for column in (run.astype("<i8"), lumisection.astype("<i8"), *(values[name].astype("<f8") for name in VALUES)):
        digest.update(column.tobytes())
    notes = [f"{path.name}: {note}" for note in notes]
    return LuminosityTable(
        path.name, run, lumisection, values, digest.hexdigest(), named.ignored, int(again.sum()), tuple(notes)
    )


def _plain(name: Any) -> str:
    """The name of a column in small letters, without its unit."""
    return re.sub(r"[^a-z0-9]+", "_", _UNIT.sub("", str(name).strip().lower())).strip("_")


def _numbers(name: str, meant: str, values: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(float64 with nan for what is empty, null or bad; which are bad; the reason of the first bad one)."""
    empty = ("", "nan", "null", "none", "-")
    out, bad = np.full(len(values), np.nan), np.zeros(len(values), bool)
    reason = ""
    for line, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        if value is None or (isinstance(value, str) and value.strip().lower() in empty):
            continue
        if isinstance(value, str) and meant in ("run", "lumisection") and (pair := _PAIR.match(value)):
            value = pair[1]
        try:
            if isinstance(value, bool):
                raise ValueError
            out[line] = float(value)
        except (TypeError, ValueError, OverflowError):
            bad[line] = True
            reason = reason or f"line {line + 1} of data: {name} is {value!r}, no number"
    return out, bad, reason
