"""Golden JSON: the lumisections of each run that are good for physics, as ranges that include both ends.

`{"355456": [[1, 501]], ...}`. A run with an empty list is bad in all its lumisections.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER


@dataclass(frozen=True, eq=False)
class Golden:
    """A golden JSON.

    ranges: run, first and last good lumisection, int64, (n, 3), sorted; ranges of a run neither overlap nor touch. bad: runs
    without a range, ascending.
    """

    name: str
    ranges: np.ndarray
    sha256: str
    bad: tuple[int, ...] = ()

    @property
    def lines(self) -> np.ndarray:
        """Ranges, and a line (run, 0, 0), which contains no lumisection, for each run without one; sorted."""
        lines = np.concatenate([self.ranges, [[run, 0, 0] for run in self.bad]]) if self.bad else self.ranges
        return lines[np.lexsort(lines.T[::-1])]

    def is_good(self, run: int, lumisection: np.ndarray) -> np.ndarray:
        """Which of these lumisections of the run are good: bool, (n,). A run that is not named has none."""
        good = np.zeros(len(lumisection), bool)
        for _, first, last in self.ranges[self.ranges[:, 0] == run].tolist():
            good |= (lumisection >= first) & (lumisection <= last)
        return good


def _is_run(text: str) -> bool:
    return text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= MAX_NUMBER


def read_golden(path: Path) -> Golden:
    """Read the file at path. Raises InputError, with file, run and reason, for a file that is no golden JSON."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        given = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: _once(path, pairs))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict) or not given:
        raise InputError(f'{path} is no golden JSON: it must be as {{"355456": [[1, 501]]}} and name a run')
    found: list[tuple[int, int, int]] = []
    bad = tuple(sorted(int(run) for run, ranges in given.items() if ranges == [] and _is_run(run)))
    for run, ranges in given.items():
        if not _is_run(run):
            raise InputError(f"{path}: {run!r} is no run number")
        if not isinstance(ranges, list):
            raise InputError(f"{path}, run {run}: {ranges!r} is no list of ranges [first, last]")
        merged: list[list[int]] = []
        for first, last in sorted(_range(path, run, pair) for pair in ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        found += [(int(run), first, last) for first, last in merged]
    table = np.array(sorted(found), np.int64).reshape(-1, 3)
    golden = Golden(path.name, table, "", bad)
    return replace(golden, sha256=hashlib.sha256(b"golden" + golden.lines.astype("<i8").tobytes()).hexdigest())


def _range(path: Path, run: str, pair: Any) -> tuple[int, int]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
        raise InputError(f"{path}, run {run}: {pair!r} is no range [first, last]")
    first, last = pair
    if first > last:
        raise InputError(f"{path}, run {run}: the range [{first}, {last}] is reversed")
    if first < 1 or last > MAX_NUMBER:
        raise InputError(f"{path}, run {run}: the range [{first}, {last}] is not in 1..{MAX_NUMBER}")
    return first, last


def _once(path: Path, pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object of JSON. Raises InputError if it holds a name twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"{path} names {next(name for name in names if names.count(name) > 1)} twice")
    return found
