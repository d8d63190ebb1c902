"""A user's own tables of conditions: runs, lengths, pileup, live fraction and flags from OMS, events from trigger rates.

The tables are those that `dqmstream import --lumi` reads. Events of a lumisection are the rate of the zero-bias trigger times
23.31 s. Without a table of rates they are Poisson around `EVENTS` times the live fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.conditions import Luminosity
from dqmstream.experiments.simulator.fills import ranges
from dqmstream.experiments.simulator.streams import PILEUP_PER_R, NamedStream
from dqmstream.storage.labels.luminosity import LuminosityTable, make_table, read_tables
from dqmstream.storage.labels.pages import join_pages
from dqmstream.storage.labels.status_flags import StatusFlags, read_status_flags
from dqmstream.storage.labels.table_files import read_table_file
from dqmstream.storage.labels.trigger_rates import ZERO_BIAS

EVENTS = 1100.0
"""N at a live fraction of 1 where no rates are given: that of most of 2024 (measured)."""

LONGEST = 20_000
"""Most lumisections of a run, 5 days. A larger number is damage."""

_HCAL = ("hbhea_ready", "hbheb_ready", "hbhec_ready")
_KEPT = ("beams_stable", "physics_flag", "cms_active", *_HCAL, "hf_ready", "ho_ready")
"""Flags that are written into the truth; those of other detectors are left out."""


@dataclass(frozen=True, slots=True, eq=False)
class TableRun:
    """The conditions of a run, from its lumisection 1 to the last one of the table.

    pileup, events, live: float64, (n,). pileup is nan and events 0 where the table has no good line. events is None if no rates
    are given. flags: int8, (n,), by name, as in `StatusFlags`.
    """

    run: int
    pileup: np.ndarray
    events: np.ndarray | None
    live: np.ndarray
    flags: Mapping[str, np.ndarray]

    def length(self, lumisections: int | None) -> int:
        """Number of lumisections if the run is cut to so many; all by default."""
        return len(self.pileup) if lumisections is None else min(len(self.pileup), lumisections)

    def luminosity(self, lumisections: int | None) -> Luminosity:
        """For drawing the run's first lumisections; all by default."""
        n = self.length(lumisections)
        pileup, live = self.pileup[:n], self.live[:n]
        known = {name: flag[:n] for name, flag in self.flags.items() if (flag[:n] >= 0).any()}
        truth: dict[str, Any] = {
            "lumisections": n,
            "live": [float(f"{value:.4g}") for value in live],
            "flags": {name: ranges(flag == 1) for name, flag in known.items()},
        }
        if self.events is None:
            return Luminosity(EVENTS, 0.0, pileup, truth=truth, live=live)
        return Luminosity(self.events[:n], 0.0, pileup, truth=truth, measured=True)


@dataclass(frozen=True, eq=False)
class TableConditions:
    """Conditions of runs from tables. runs: by rising number. notes: what was used, changed and left out, for the user."""

    runs: tuple[TableRun, ...]
    notes: tuple[str, ...]


def read_conditions(conditions: Sequence[Path], rates: Sequence[Path] = (), hlt_path: str = ZERO_BIAS) -> TableConditions:
    """Read conditions from tables, and events from tables of trigger rates.

    hlt_path: the trigger whose rate gives events, without version. Raises InputError, with the file and what to do, for a file
    that is no table, a table without runs or pileup, a flag that is false in all lumisections, and if no run is left.
    """
    files = join_pages([read_table_file(path) for path in conditions])
    tables = [_with_pileup(make_table(one.path, one.values, one.notes)) for one in files]
    flags = [read_status_flags(one) for one in files]
    for table, found in zip(tables, flags, strict=True):
        _check_flags(table.name, found)
    triggers = read_tables(rates, hlt_path)
    for trigger in triggers:
        if not trigger.has_runs or np.isnan(trigger.values["n_events"]).all():
            raise InputError(f"{trigger.name} has no events by run: give trigger rates by run and path with --rates")
    told = ("columns not used", "events are the rate")  # said in other words, or of no interest here
    notes = [note for table in (*tables, *triggers) for note in table.notes if not any(part in note for part in told)]
    left_out: dict[str, list[int]] = {}
    runs: dict[int, TableRun] = {}
    for table, found in zip(tables, flags, strict=True):
        for number in np.unique(table.run).tolist():
            if number in runs:
                raise InputError(f"run {number} is in two tables of conditions: give each run once")
            one = _run(number, table, found, triggers)
            if why := _why_left_out(one, bool(triggers)):
                left_out.setdefault(why, []).append(number)
            else:
                runs[number] = one
    notes += [f"{len(numbers)} runs left out, {why}: {_some(numbers)}" for why, numbers in left_out.items()]
    names = ", ".join(table.name for table in tables)
    if not runs:
        raise InputError(f"{names}: no run is left. {'; '.join(notes[-len(left_out) :])}")
    kept = tuple(runs[number] for number in sorted(runs))
    return TableConditions(kept, (_used(kept, names, triggers, hlt_path), *notes))


def under_tables(named: NamedStream, given: TableConditions, runs: int | None) -> tuple[NamedStream, list[int]]:
    """The stream under conditions of tables, and the numbers of its first runs; all by default.

    Raises InputError for more runs than the tables hold, and for a stream whose changes belong to its own conditions.
    """
    if named.luminosity == "published" or (named.outside is not None and named.outside.threshold_p):
        raise InputError(
            f"the stream {named.name} belongs to conditions of its own: with --conditions choose campaign, moderate, small, "
            "null or another"
        )
    count = len(given.runs) if runs is None else runs
    if count > len(given.runs):
        raise InputError(f"the tables hold {len(given.runs)} runs with pileup and events, not {count}: ask for fewer")
    under = replace(named, luminosity="tables", pileup_per_r=PILEUP_PER_R, luminosity_per_run_fb=0.0)
    return under, [one.run for one in given.runs[:count]]


def _with_pileup(table: LuminosityTable) -> LuminosityTable:
    if not table.has_runs:
        raise InputError(f"{table.name} names no run: add a column run_number, or give another table with --conditions")
    if np.isnan(table.values["pileup"]).all():
        raise InputError(
            f"{table.name} has no pileup: it needs a column pileup (or avgpu) beside run and lumisection; "
            "give such a table with --conditions, and trigger rates with --rates"
        )
    return table


def _check_flags(name: str, found: StatusFlags) -> None:
    """Raise InputError if beams are nowhere stable, data taking nowhere active, or HB and HE nowhere ready."""
    for flag, what in (
        ("beams_stable", "beams are stable"),
        ("cms_active", "data taking is active"),
        *((flag, "HB and HE are ready") for flag in _HCAL),
    ):
        values = found.values.get(flag)
        if values is not None and (values >= 0).any() and not (values == 1).any():
            raise InputError(
                f"{name}: {flag} is false in every lumisection, so there is none in which {what}; give a table of collisions, "
                "or remove the column to use its lumisections all the same"
            )


def _run(number: int, table: LuminosityTable, flags: StatusFlags, triggers: Sequence[LuminosityTable]) -> TableRun:
    last = int(table.lumisection[table.run == number].max())
    if last > LONGEST:
        raise InputError(
            f"{table.name}: run {number} has a lumisection {last}, and no run has more than {LONGEST}: correct the line"
        )
    numbers = np.arange(1, last + 1)
    values = table.of(number, numbers)
    pileup, delivered, recorded = values["pileup"], values["delivered_lumi"], values["recorded_lumi"]
    measured = (delivered > 0) & ~np.isnan(recorded)
    live = np.divide(recorded, delivered, out=np.where(delivered == 0, 0.0, 1.0), where=measured)
    events = None
    if triggers:
        events = np.full(last, np.nan)
        for trigger in triggers:
            found = trigger.of(number, numbers)["n_events"]
            events = np.where(np.isnan(events), found, events)
    pileup = np.where(np.isnan(events), np.nan, pileup) if events is not None else pileup
    lost = np.isnan(pileup)
    live = np.where(lost, 0.0, np.clip(live, 0.0, 1.0))
    counted = None if events is None else np.where(lost, 0.0, np.rint(np.nan_to_num(events)))
    kept = {name: flag for name, flag in flags.of(number, last).items() if name in _KEPT}
    return TableRun(number, pileup, counted, live, kept)


def _why_left_out(one: TableRun, with_rates: bool) -> str:
    """Why a run is not used; "" if it is."""
    known = ~np.isnan(one.pileup)
    if not known.any():
        return "without a rate of the trigger or without pileup" if with_rates else "without pileup"
    filled = one.live if one.events is None else one.events
    return "" if (known & (one.pileup > 0) & (filled > 0)).any() else "without a lumisection that has pileup and events above 0"


def _used(runs: Sequence[TableRun], names: str, triggers: Sequence[LuminosityTable], hlt_path: str) -> str:
    lumisections = sum(len(one.pileup) for one in runs)
    lost = sum(int(np.isnan(one.pileup).sum()) for one in runs)
    dark = sum(int((one.pileup == 0).sum()) for one in runs)
    text = f"{len(runs)} runs of {lumisections} lumisections from {names}"
    if triggers:
        text += f", events from the rate of {hlt_path} in {', '.join(trigger.name for trigger in triggers)}"
    else:
        text += f", events Poisson around {EVENTS:g} times the live fraction, since no rates are given"
    if dark:
        text += f"; {dark} lumisections have a pileup of 0 and count nothing"
    if lost:
        text += f"; {lost} lumisections are empty, since the tables do not give their pileup or rate"
    return text


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
