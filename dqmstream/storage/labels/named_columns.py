"""Columns of conditions under any of the names that files give them, with bad lines and values left out.

Accepted names are, for example: run (run_number, run:fill), lumisection (lumisection_number, ls_number, ls), pileup (avgpu),
delivered_lumi and recorded_lumi (delivered_lumi_per_lumisection, delivered(/ub), lumi), events (n_events).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER, MAX_PILEUP

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
"""Run and fill, or a lumisection of the LHC and of CMS (0 where CMS took no data), as brilcalc writes them."""

_NEGLIGIBLE: Mapping[str, float] = {"pileup": 1e-2, "delivered_lumi": 1e-6, "recorded_lumi": 1e-6}
"""Size of a negative value that is taken as 0."""

_LARGEST: Mapping[str, float] = {"pileup": MAX_PILEUP, "n_events": MAX_NUMBER}
"""Largest possible value. The import also checks --max-events and the maps."""


def name_columns(
    path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Columns under this module's names, in the order of the file, and notes of what was left out or changed.

    run and lumisection are int64, all others float64, nan where unknown or bad. Raises InputError for a bad run or lumisection.
    """
    named = NamedColumns(path, columns)
    for reason in (named.reasons[name] for name, bad in named.bad.items() if bad.any() and name in ("run", "lumisection")):
        raise InputError(f"{path}, {reason}")
    named.good()
    whole = ("run", "lumisection")
    found = {name: column.astype(np.int64 if name in whole else np.float64) for name, column in named.found.items()}
    return found, tuple(named.notes)


class NamedColumns:
    """Columns under this module's names, and which of their entries are bad.

    found: float64, (n,), by name, nan where unknown or bad. bad: bool, (n,), by name. reasons: of the first bad entry, by name.
    sums: names of columns that may be sums over the run. ignored: names of columns that were not used. notes: for the user.
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
        """The columns without lines that lack run or lumisection, with notes of what was left out.

        Raises InputError for a column, or a table, in which all is bad.
        """
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
        """Read a column. name: in the file; meant: here."""
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
        """Set slightly negative values, which instruments give without beam, to 0."""
        finite = values[np.isfinite(values)]
        if meant not in _NEGLIGIBLE or not len(finite):
            return
        lowest = -max(_NEGLIGIBLE[meant], 1e-3 * float(finite.max()))
        if (below := (values < 0) & (values >= lowest)).any():
            self.notes.append(f"{int(below.sum())} values of {meant} below 0 (the lowest {values[below].min():.3g}) taken as 0")
            values[below] = 0.0


def _plain(name: Any) -> str:
    """Name of a column in lower case, without its unit."""
    return re.sub(r"[^a-z0-9]+", "_", _UNIT.sub("", str(name).strip().lower())).strip("_")


def _numbers(name: str, meant: str, values: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Values as float64, nan where empty, null or bad; which are bad: bool; and the reason of the first bad one."""
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
