"""Labels of lumisections beside the logs: golden lumisections and luminosity. Each import is a version, and old ones stay.

    labels/golden/        run first last version                                                  (range,)
    labels/luminosity/    run lumisection pileup n_events delivered_lumi recorded_lumi version    (line,)
    labels/<kind>/versions/   sha256 name committed                                               (version,)

Tables only grow: version k, from 1 on, is the k-th import. A golden JSON covers the runs from the first to the last that it
names (the JSON of 2022 says nothing about 2023). For each run the newest version that covers it counts. A run that it leaves
out, or names without a range (stored as a line with first and last 0), is bad in all lumisections. Of luminosity, the newest
known value of each quantity counts: pileup may come from one table and events from another. Labels never change rows of a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage import layout
from dqmstream.storage.columns import Columns, read_column
from dqmstream.storage.labels.luminosity import VALUES, LuminosityTable

GOOD, BAD, UNKNOWN = 1, 0, -1

LABEL_COLUMNS: Mapping[str, Columns] = {
    "golden": {
        "run": ("int64", {}),
        "first": ("int64", {"long_name": "first good lumisection of the range"}),
        "last": ("int64", {"long_name": "last good lumisection of the range"}),
        "version": ("int64", {}),
    },
    "luminosity": {
        "run": ("int64", {}),
        "lumisection": ("int64", {}),
        **{name: ("float64", {"long_name": f"{name} as in the table, nan where unknown"}) for name in VALUES},
        "version": ("int64", {}),
    },
}

VERSION_COLUMNS: Columns = {
    "sha256": ("str", {"long_name": "of what the file says, whatever its order"}),
    "name": ("str", {"long_name": "name of the file"}),
    "committed": layout.ROW_COLUMNS["committed"],
}


@dataclass(frozen=True)
class LabelVersion:
    """A version of labels. kind: "golden" or "luminosity". name: of the file. new: whether this import made it."""

    kind: str
    version: int
    name: str
    new: bool


class Labels:
    """The labels of an archive at a snapshot, read at the first use. root: its root group."""

    def __init__(self, root: zarr.Group) -> None:
        self._root = root

    @cached_property
    def golden(self) -> dict[str, np.ndarray] | None:
        """Columns of all versions; None if no golden JSON was imported."""
        return _read(self._root, "golden")

    @cached_property
    def luminosity(self) -> dict[str, np.ndarray] | None:
        """Columns of all versions; None if no table was imported."""
        return _read(self._root, "luminosity")

    def golden_of(self, run: int, lumisection: np.ndarray, version: int | None = None) -> np.ndarray:
        """1 good, 0 bad, -1 if no golden JSON covers the run: int8, (n,).

        version: the labels as of this version; None: the newest. Raises ArchiveError for a version that does not exist.
        """
        found = np.full(len(lumisection), UNKNOWN, np.int8)
        if self.golden is None:
            return found
        runs, versions = self.golden["run"], self.golden["version"]
        newest = int(versions.max()) if version is None else version
        for candidate in range(newest, 0, -1):
            here = versions == candidate
            if not here.any():
                raise ArchiveError(f"there is no version {candidate} of golden labels: the newest is {int(versions.max())}")
            if runs[here].min() <= run <= runs[here].max():
                found[:] = BAD
                for place in np.flatnonzero(here & (runs == run)):
                    first, last = self.golden["first"][place], self.golden["last"][place]
                    found[(lumisection >= first) & (lumisection <= last)] = GOOD
                return found
        return found

    def luminosity_of(self, run: int, lumisection: np.ndarray) -> dict[str, np.ndarray]:
        """Values of these lumisections by name, nan where unknown; each float64, (n,)."""
        found = {name: np.full(len(lumisection), np.nan) for name in VALUES}
        if self.luminosity is None:
            return found
        of_run = np.flatnonzero(self.luminosity["run"] == run)[::-1]  # newest version first
        for name in VALUES:
            rows = of_run[~np.isnan(self.luminosity[name][of_run])]
            if not len(rows):
                continue
            numbers, newest = np.unique(self.luminosity["lumisection"][rows], return_index=True)
            at = np.minimum(np.searchsorted(numbers, lumisection), len(numbers) - 1)
            there = numbers[at] == lumisection
            found[name][there] = self.luminosity[name][rows[newest[at[there]]]]
        return found

    def says(self, table: LuminosityTable) -> bool:
        """Whether the labels hold every value of the table already. The table must name runs."""
        for run in np.unique(table.run).tolist():
            numbers = table.lumisection[table.run == run]
            given, said = table.of(run, numbers), self.luminosity_of(run, numbers)
            if any((~np.isnan(given[name]) & (given[name] != said[name])).any() for name in VALUES):
                return False
        return True


def label_versions(root: zarr.Group) -> list[LabelVersion]:
    """Every version of every kind, oldest first."""
    found = []
    for kind in LABEL_COLUMNS:
        path = f"labels/{kind}/versions"
        names = read_column(root, f"{path}/name").tolist() if path in root else []
        found += [LabelVersion(kind, number, name, False) for number, name in enumerate(names, start=1)]
    return found


def _read(root: zarr.Group, kind: str) -> dict[str, np.ndarray] | None:
    if f"labels/{kind}" not in root:
        return None
    return {name: read_column(root, f"labels/{kind}/{name}") for name in LABEL_COLUMNS[kind]}
