"""Conditions of lumisections: pileup, events and luminosities, from OMS, brilcalc, HLT rates or any other table.

`labels.named_columns` lists the accepted names of columns, `labels.table_files` the accepted files. Units stay as in the file.

The luminosities of the result are of single lumisections. In answers of OMS, `delivered_lumi` is a sum over the run: it is not
used if the table also has `delivered_lumi_per_lumisection`; otherwise differences of neighbouring lumisections are used. Bad
lines and values are left out and noted. A file of which nothing is left is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.storage.labels.cumulative_columns import own_of_sum
from dqmstream.storage.labels.named_columns import NamedColumns
from dqmstream.storage.labels.pages import join_pages
from dqmstream.storage.labels.table_files import read_table_file
from dqmstream.storage.labels.trigger_rates import ZERO_BIAS, events_of_rates

VALUES = ("pileup", "n_events", "delivered_lumi", "recorded_lumi")


@dataclass(frozen=True, eq=False)
class LuminosityTable:
    """Conditions by run and lumisection, sorted, each lumisection once.

    run: int64, (n,), -1 if the table names none. lumisection: int64, (n,). values: float64, (n,), by name, nan where unknown.
    ignored: columns that were not used. repeats: number of lines that repeat another. notes: what was left out, changed, or
    read in one of two possible ways, for the user.
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
        """Whether the table names the run of each line."""
        return bool((self.run >= 0).all())

    def for_run(self, run: int) -> LuminosityTable:
        """The table with this run, if it names none."""
        return self if self.has_runs else replace(self, run=np.full(len(self.run), run))

    def of(self, run: int, lumisection: np.ndarray) -> dict[str, np.ndarray]:
        """Values of these lumisections by name, nan where unknown; each (n,)."""
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
    """The table at path. Raises InputError, with file and reason, for a file that cannot be used or is but a page."""
    return read_tables([path], hlt_path)[0]


def read_tables(paths: Sequence[Path], hlt_path: str = ZERO_BIAS) -> list[LuminosityTable]:
    """The tables of these files, with pages of an answer joined. hlt_path: trigger whose rate gives events, without version."""
    made = []
    for table in join_pages([read_table_file(path) for path in paths]):
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

    path: for messages. notes: to begin with. may_be_sums: whether luminosities may be sums over the run.
    """
    named = NamedColumns(path, columns)
    if not may_be_sums:
        named.sums.clear()
    found = named.good()
    if not set(found) & set(VALUES):
        raise InputError(f"{path} has none of the columns pileup, delivered_lumi, recorded_lumi, events")
    lumisection = found["lumisection"].astype(np.int64)
    run = found.get("run", np.full(len(lumisection), -1)).astype(np.int64)
    values = {name: found.get(name, np.full(len(lumisection), np.nan)) for name in VALUES}
    return _sorted(path, run, lumisection, values, named, notes)


def _sorted(
    path: Path,
    run: np.ndarray,
    lumisection: np.ndarray,
    values: dict[str, np.ndarray],
    named: NamedColumns,
    before: Sequence[str],
) -> LuminosityTable:
    """The table with one line for each lumisection, sorted, and with luminosities of single lumisections.

    before: notes to begin with. Raises InputError for a quantity of which no value is left.
    """
    order = np.lexsort((lumisection, run))
    run, lumisection = run[order], lumisection[order]
    again = np.append(False, (np.diff(run) == 0) & (np.diff(lumisection) == 0))
    starts = np.flatnonzero(~again)
    run, lumisection = run[starts], lumisection[starts]
    notes = [*before, *named.notes]
    for name, column in values.items():
        values[name], note = _one_value_each(path, run, lumisection, name, column[order], starts)
        notes += [note] if note else []
    for name in sorted(named.sums):
        values[name], note = own_of_sum(name, run, lumisection, values[name], values["pileup"])
        notes += [note] if note else []
    notes = [f"{path.name}: {note}" for note in notes]
    sha256 = _digest(run, lumisection, values)
    return LuminosityTable(path.name, run, lumisection, values, sha256, named.ignored, int(again.sum()), tuple(notes))


def _one_value_each(
    path: Path, run: np.ndarray, lumisection: np.ndarray, name: str, column: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, str]:
    """Value of each lumisection, nan where lines contradict each other, and a note for the user.

    column: sorted; starts: its first line of each lumisection. Raises InputError if no value is left.
    """
    least, most = (reduce.reduceat(column, starts) for reduce in (np.fmin, np.fmax))
    values = np.where(least < most, np.nan, least)
    if not (differs := least < most).any():
        return values, ""
    at = int(np.argmax(differs))
    of = f"run {run[at]}, lumisection {lumisection[at]}" if run[at] >= 0 else f"lumisection {lumisection[at]}"
    said = f"names {of} twice, with {name} {least[at]} and {most[at]}"
    if not (~np.isnan(values)).any():
        raise InputError(f"{path} {said}")
    return values, f"{int(differs.sum())} values of {name} left out: it {said}"


def _digest(run: np.ndarray, lumisection: np.ndarray, values: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(b"luminosity")
    for column in (run.astype("<i8"), lumisection.astype("<i8"), *(values[name].astype("<f8") for name in VALUES)):
        digest.update(column.tobytes())
    return digest.hexdigest()
