"""Status flags of lumisections in tables of OMS: beams_stable, physics_flag, cms_active, and which detectors are ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqmstream.storage.labels.named_columns import NamedColumns
from dqmstream.storage.labels.pages import FileTable

_FLAGS = ("beams_stable", "beam1_stable", "beam2_stable", "physics_flag", "cms_active")
_READY = "_ready"
_TEXT = {"true": 1, "false": 0, "1": 1, "0": 0}

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class StatusFlags:
    """Flags by lumisection, in the order of the table.

    run: int64, (n,), -1 where the table names none. lumisection: int64, (n,). values: int8, (n,), by name: 1 true, 0 false,
    `UNKNOWN` where the table does not say.
    """

    run: np.ndarray
    lumisection: np.ndarray
    values: Mapping[str, np.ndarray]

    def of(self, run: int, lumisections: int) -> dict[str, np.ndarray]:
        """Flags of lumisections 1 to n of a run by name, int8, (n,); a table that names no run is about this run."""
        here = ((self.run == run) | (self.run < 0)) & (self.lumisection >= 1) & (self.lumisection <= lumisections)
        found = {}
        for name, values in self.values.items():
            found[name] = np.full(lumisections, UNKNOWN, np.int8)
            found[name][self.lumisection[here] - 1] = values[here]
        return found


def read_status_flags(table: FileTable) -> StatusFlags:
    """The flags of a table: columns `beams_stable`, `physics_flag`, `cms_active` and all whose names end in `_ready`.

    Raises InputError for a table without lumisections.
    """
    named = NamedColumns(table.path, table.values)
    lumisection = named.found["lumisection"]
    run = named.found.get("run", np.full(len(lumisection), -1.0))
    kept = ~np.isnan(run) & ~np.isnan(lumisection)
    columns = {name: column for name, column in table.values.items() if _is_flag(str(name))}
    values = {str(name).strip().lower(): np.array([_flag(one) for one in column], np.int8) for name, column in columns.items()}
    return StatusFlags(
        run[kept].astype(np.int64), lumisection[kept].astype(np.int64), {name: flag[kept] for name, flag in values.items()}
    )


def _is_flag(name: str) -> bool:
    plain = name.strip().lower()
    return plain in _FLAGS or plain.endswith(_READY)


def _flag(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | float) and value in (0, 1):
        return int(value)
    return _TEXT.get(str(value).strip().lower(), UNKNOWN)
