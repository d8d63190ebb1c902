"""The entries of a log: rows with a lumisection, and control entries that say why offsets hold no row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from dqmstream.lumisection import MAX_EVENTS, Geometry, Lumisection, content_hash, raise_fault, row_faults, with_depths
from dqmstream.storage.columns import Column
from dqmstream.storage.layout import NAT, ControlKind, Quality
from dqmstream.storage.scale import whole_rows

LATEST_NS = int(np.iinfo(np.int64).max)
"""Latest time that can be stored, UTC nanoseconds since 1970."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A lumisection as it will be stored.

    occupancy: archive dtype, shape (depth, 64, 72). content: hash of the contents. time_ns: start of the lumisection;
    produced_ns: when the broker took the message; both UTC, nanoseconds since 1970, 0 if unknown.
    """

    offset: int
    run: int
    lumisection: int
    occupancy: np.ndarray
    content: int
    time_ns: int = 0
    n_events: float = nan
    pileup: float = nan
    quality: Quality = Quality.GOOD
    source: str = ""
    produced_ns: int = 0


@dataclass(frozen=True, slots=True)
class Control:
    """Why offsets [offset, until) hold no row."""

    offset: int
    until: int
    kind: ControlKind
    run: int = -1
    lumisection: int = -1
    reason: str = ""


Entry = Row | Control


def make_row(
    record: Lumisection,
    offset: int,
    geometry: Geometry,
    dtype: np.dtype,
    quality: Quality = Quality.GOOD,
    *,
    produced_ns: int = 0,
    max_events: float = MAX_EVENTS,
) -> Row:
    """The row of a lumisection. Raises ValueError, with the reason, for a lumisection that the archive cannot hold.

    quality: what is known of the lumisection; NOT_WHOLE is added where its counts are not whole. produced_ns: when the broker
    took the message, UTC nanoseconds since 1970. A producer can claim any time; an impossible one is stored as unknown.
    max_events: most events of a lumisection.
    """
    counts = with_depths(record.occupancy, geometry)
    raise_fault(
        row_faults(
            run=record.run,
            lumisection=record.lumisection,
            time_ns=record.time_ns,
            counts=counts.reshape(-1),
            n_events=record.n_events,
            pileup=record.pileup,
            dtype=dtype,
            max_events=max_events,
            interpolated=bool(quality & Quality.INTERPOLATED),
        )
    )
    stored = np.ascontiguousarray(counts, dtype=dtype.newbyteorder("<"))
    if not (quality & Quality.INTERPOLATED or whole_rows(stored[None])[0]):
        quality |= Quality.NOT_WHOLE
    return row_of(
        offset,
        record.run,
        record.lumisection,
        stored,
        record.time_ns,
        record.n_events,
        record.pileup,
        record.source,
        produced_ns,
        quality,
    )


def row_of(
    offset: int,
    run: int,
    lumisection: int,
    stored: np.ndarray,
    time_ns: int,
    n_events: float,
    pileup: float,
    source: str,
    produced_ns: int,
    quality: Quality = Quality.GOOD,
) -> Row:
    """The row of a lumisection that breaks no rule (`lumisection.row_faults`). produced_ns: as `make_row` has it.

    stored: the map as the archive holds it, little-endian, shape (depth, 64, 72).
    """
    return Row(
        offset=offset,
        run=run,
        lumisection=lumisection,
        occupancy=stored,
        content=content_hash(stored, n_events, pileup),
        time_ns=time_ns,
        n_events=n_events,
        pileup=pileup,
        quality=quality,
        source=source,
        produced_ns=produced_ns if 0 < produced_ns <= LATEST_NS else 0,
    )


def check_tiling(entries: Sequence[Entry], at: int) -> int:
    """The first offset after the entries. Raises ValueError unless they cover each offset from `at` on once, in order."""
    for entry in entries:
        if entry.offset != at:
            raise ValueError(f"offset {at} lies in no entry, the next one starts at {entry.offset}")
        at = entry.offset + 1 if isinstance(entry, Row) else entry.until
    return at


def row_columns(rows: list[tuple[Row, Quality]], dtype: np.dtype, committed_ns: int) -> dict[str, Column]:
    """Values of each column of the log, as `layout.ROW_COLUMNS` lists them, and maps."""
    table = [row for row, _ in rows]
    return {
        "occupancy": [row.occupancy.astype(dtype, copy=False) for row in table],
        "run": np.array([row.run for row in table], np.int64),
        "lumisection": np.array([row.lumisection for row in table], np.int64),
        "time": np.array([row.time_ns or NAT for row in table], np.int64),
        "n_events": np.array([row.n_events for row in table], np.float64),
        "pileup": np.array([row.pileup for row in table], np.float64),
        "offset": np.array([row.offset for row in table], np.int64),
        "content": np.array([row.content for row in table], np.uint64),
        "quality": np.array([quality for _, quality in rows], np.uint8),
        "produced": np.array([row.produced_ns or NAT for row in table], np.int64),
        "committed": np.full(len(table), committed_ns, np.int64),
    }


def control_columns(control: list[Control]) -> dict[str, np.ndarray]:
    """Values of each column of `layout.CONTROL_COLUMNS`."""
    return {
        "offset": np.array([entry.offset for entry in control], np.int64),
        "until": np.array([entry.until for entry in control], np.int64),
        "kind": np.array([entry.kind for entry in control], np.uint8),
        "run": np.array([entry.run for entry in control], np.int64),
        "lumisection": np.array([entry.lumisection for entry in control], np.int64),
        "reason": np.array([entry.reason for entry in control], dtype=object),
    }
