"""Findings of a check, and tables of an archive as far as they can be read."""

from __future__ import annotations

from dataclasses import dataclass, field

import icechunk
import numpy as np
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage.columns import Columns, array
from dqmstream.storage.layout import SCALARS_PER_CHUNK

UNREADABLE = (icechunk.IcechunkError, ArchiveError, RuntimeError, ValueError, TypeError, LookupError, OSError, EOFError)
"""Errors that storage and codecs raise for a missing or damaged chunk."""

KEPT = ("run", "lumisection", "n_events", "pileup", "offset", "content", "quality", "committed")
"""Columns of rows that are kept to be compared. Others are only read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong in an archive. where: feed/partition and rows, control entries or files."""

    where: str
    what: str


@dataclass
class ReadableTable:
    """Equally long columns of `size` entries. known: for each column, which entries could be read: bool, (size,)."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[str, np.ndarray] = field(default_factory=dict)
    size: int = 0

    def both(self, *names: str) -> np.ndarray:
        """Entries for which all these columns could be read: bool, (size,)."""
        return np.logical_and.reduce([self.known[name] for name in names])


def read_table(
    group: zarr.Group,
    columns: Columns,
    where: str,
    dimension: str,
    findings: list[Finding],
    others: tuple[str, ...] = (),
    prefix: str = "",
) -> ReadableTable:
    """Read the columns of a table as far as possible, and add to findings what is wrong with them.

    where, dimension: name of the table and of its entries, in findings. others: further arrays that must be as long. prefix: of
    the arrays' paths below the group.
    """
    lengths = {name: length_of(group, prefix + name) for name in (*columns, *others)}
    size = max(min(lengths.values()), 0) if len(set(lengths.values())) == 1 else _common(lengths)
    for name, length in lengths.items():
        if length < 0:
            findings.append(Finding(where, f"there is no {prefix}{name}"))
        elif length != size:
            findings.append(Finding(where, f"{prefix}{name} has {length} entries, not {size}"))
    table = ReadableTable(size=size)
    for name, (dtype, _) in columns.items():
        values = np.zeros(size, object if dtype == "str" else dtype)
        known = np.zeros(size, bool)
        for start in range(0, min(size, lengths[name]), SCALARS_PER_CHUNK):
            stop = min(start + SCALARS_PER_CHUNK, size, lengths[name])
            try:
                values[start:stop] = array(group, prefix + name)[start:stop]
                known[start:stop] = True
            except UNREADABLE as error:
                place = f"{where} {prefix.replace('/', ' ')}{numbered(dimension, start, stop - 1)}"
                findings.append(Finding(place, f"{name} cannot be read: {line_of(error)}"))
        if dimension != "row" or name in KEPT:
            table.columns[name], table.known[name] = values, known
    return table


def _common(lengths: dict[str, int]) -> int:
    """The length of most columns."""
    there = [length for length in lengths.values() if length >= 0]
    return max(set(there), key=there.count) if there else 0


def length_of(group: zarr.Group, name: str) -> int:
    """Length of an array, -1 if it is missing."""
    found = group.get(name)
    return int(found.shape[0]) if isinstance(found, zarr.Array) else -1


def numbered(what: str, first: int, last: int) -> str:
    """ "row 3" or "rows 3-7"."""
    return f"{what} {first}" if first == last else f"{what}s {first}-{last}".replace("entrys", "entries")


def line_of(error: Exception) -> str:
    """First line of an error's message, without the frame that Icechunk draws around it."""
    lines = [line.strip(" x│├╰─▶>|`-\t") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
