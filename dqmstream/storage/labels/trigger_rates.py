"""Events of a lumisection from trigger rates: the rate of the path that selected the events, times a lumisection's length.

A rate counts events that the path accepted after its prescale. So for maps of the data set ZeroBias, the rate of
HLT_ZeroBias_v<version> gives the number of events. Paths with longer names, as HLT_ZeroBias_Alignment_v5, feed other data sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import LUMISECTION_S
from dqmstream.storage.labels.pages import FileTable

ZERO_BIAS = "HLT_ZeroBias"
LENGTH_ACCURACY = 3e-5
"""Relative difference between the lumisection's length here and the one by which rates were divided: 23.31105 s, 23.31041 s."""


def events_of_rates(table: FileTable, hlt_path: str) -> FileTable:
    """The table with only the lines of that path, and with their events; a table without rates of paths is not changed.

    hlt_path: name of the path, with or without version. Raises InputError for a table that has rates but none of this path.
    """
    names = {str(name).strip().lower(): name for name in table.values}
    if not {"path_name", "rate"} <= names.keys():
        return table
    paths: Sequence[Any] = table.values[names["path_name"]]
    wanted = re.compile(rf"{re.escape(hlt_path)}(_v\d+)?")
    taken = np.array([wanted.fullmatch(str(path)) is not None for path in paths], bool)
    others = dict.fromkeys(str(path) for path, one in zip(paths, taken, strict=True) if not one)
    if not taken.any():
        has = f"it has {', '.join(others)}: name one by --hlt-path" if others else "it holds no line"
        raise InputError(f"{table.path} has no rate of {hlt_path}; {has}")
    notes = [f"events are the rate of {hlt_path} times {LUMISECTION_S:.2f} s"]
    if others:
        notes.append(f"paths not used: {', '.join(others)}")
    if (run := names.get("run_number", names.get("run"))) is not None:
        runs = [str(one) for one in table.values[run]]
        without = set(runs) - {one for one, here in zip(runs, taken, strict=True) if here}
        if without:
            notes.append(f"{len(without)} of {len(set(runs))} runs have no rate of {hlt_path}")
    if {"first_lumisection_number", "last_lumisection_number"} <= names.keys():
        ends = (table.values[names[f"{end}_lumisection_number"]] for end in ("first", "last"))
        longer = np.array([first != last for first, last in zip(*ends, strict=True)], bool) & taken
        if longer.any():
            notes.append(f"{int(longer.sum())} lines left out: their rate is of several lumisections")
        taken &= ~longer
    left_out = (names["path_name"], names["rate"], names.get("last_lumisection_number"))
    places = np.flatnonzero(taken).tolist()
    values = {name: [column[place] for place in places] for name, column in table.values.items() if name not in left_out}
    values["n_events"] = [_events(table.values[names["rate"]][place]) for place in places]
    return replace(table, values=values, notes=(*table.notes, *notes))


def _events(rate: Any) -> Any:
    """Events in a lumisection at this rate (Hz), rounded if that is within the accuracy. Not a number: returned unchanged."""
    try:
        events = float(rate) * LUMISECTION_S
    except (TypeError, ValueError):
        return rate
    whole = float(np.rint(events))
    return whole if abs(events - whole) <= LENGTH_ACCURACY * abs(events) else events
