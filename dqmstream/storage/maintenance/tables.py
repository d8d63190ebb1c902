"""Tables of an archive as far as they can be read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import icechunk
import numpy as np
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage.layout import SCALARS_PER_CHUNK

UNREADABLE = (icechunk.IcechunkError, ArchiveError, RuntimeError, ValueError, TypeError, LookupError, OSError, EOFError)
"""What storage and codecs raise for a chunk that is gone or damaged."""

KEPT = ("run", "lumisection", "n_events", "pileup", "offset", "content", "quality", "committed")
"""Columns that are compared; of the others it is only asked whether they can be read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. where: feed/partition and rows, entries or files."""

    where: str
    what: str


@dataclass
class Table:
    """Equally long columns and, for each, which of its entries could be read."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[str, np.ndarray] = field(default_factory=dict)
    size: int = 0

    def both(self, *names: str) -> np.ndarray:
        """Entries of which all these columns could be read: bool, shape (size,)."""
        return np.logical_and.reduce([self.known[name] for name in names])


def read_table(
    group: zarr.Group,
    columns: Mapping[str, tuple[str, Mapping[str, Any]]],
    where: str,
    dimension: str,
    findings: list[Finding],
    others: tuple[str, ...] = (),
    prefix: str = "",
) -> Table:
    """Columns of a table, and what is wrong with them. others: arrays to be as long. Of a missing column nothing is known."""
    lengths = {name: length_of(group, prefix + name) for name in (*columns, *others)}
    size = max(min(lengths.values()), 0) if len(set(lengths.values())) == 1 else _common(lengths)
    for name, length in lengths.items():
        if length < 0:
            findings.append(Finding(where, f"there is no {prefix}{name}"))
        elif length != size:
            findings.append(Finding(where, f"{prefix}{name} has {length} entries, not {size}"))
    table = Table(size=size)
    for name, (dtype, _) in columns.items():
        values = np.zeros(size, object if dtype == "str" else dtype)
        known = np.zeros(size, bool)
        for start in range(0, min(size, lengths[name]), SCALARS_PER_CHUNK):
            stop = min(start + SCALARS_PER_CHUNK, size, lengths[name])
            try:
                values[start:stop] = group[prefix + name][start:stop]
                known[start:stop] = True
            except UNREADABLE as error:
                place = f"{where} {prefix.replace('/', ' ')}{numbered(dimension, start, stop - 1)}"
                findings.append(Finding(place, f"{name} cannot be read: {line_of(error)}"))
        if dimension != "row" or name in KEPT:
            table.columns[name], table.known[name] = values, known
    return table


def _common(lengths: dict[str, int]) -> int:
    """The length that most columns have."""
    there = [length for length in lengths.values() if length >= 0]
    return max(set(there), key=there.count) if there else 0


def length_of(group: zarr.Group, name: str) -> int:
    """Length of an array; -1 where there is none."""
    array = group.get(name)
    return -1 if array is None else int(array.shape[0])


def numbered(what: str, first: int, last: int) -> str:
    return f"{what} {first}" if first == last else f"{what}s {first}-{last}".replace("entrys", "entries")


def line_of(error: Exception) -> str:
    """What an error says, without the frame that icechunk draws around it."""
    lines = [line.strip(" x│├╰─▶>|`-\t") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
