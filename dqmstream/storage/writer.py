"""Writing: a batch of a partition's offsets is filed whole, once, or refused.

Exactly once is one sentence: rows and `next_offset` are written in one commit, and `append` is refused unless the stored
`next_offset` equals the offset at which the batch starts. A worker that was thought dead and wakes up with a fresh session
is refused too, since what it expects is no longer what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import zarr

from dqmstream.lumisection import (
    MAX_EVENTS,
    Geometry,
    Lumisection,
    content_hash,
    raise_fault,
    row_faults,
    with_depths,
)
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.clock import ClockSetBack
from dqmstream.storage.columns import Column, append_columns, append_line
from dqmstream.storage.commits import Change
from dqmstream.storage.imports.datasets import ImportedDatasets
from dqmstream.storage.layout import IMPORT_FEED, NAT, ControlKind, Quality
from dqmstream.storage.migrate import migrate
from dqmstream.storage.row_index import ROW_FIELDS, RowIndex

LATEST_NS = int(np.iinfo(np.int64).max)


class OffsetConflict(Exception):
    """Another writer has moved the partition on: `stored` is the next_offset in the archive now, None if it has no log."""

    def __init__(self, expected: int, stored: int | None) -> None:
        super().__init__(f"the batch starts at offset {expected}, the archive continues at {stored}")
        self.stored = stored


class SourceConflict(Exception):
    """A row comes from another dataset or monitoring element than the archive's, `stored`."""

    def __init__(self, stored: str) -> None:
        super().__init__(f"the archive holds {stored}")
        self.stored = stored


class DatasetConflict(Exception):
    """Rows are of another data set than the files that their runs were imported from. reasons: by the offset of the row."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A lumisection as it will be stored.

    occupancy: archive dtype, shape (depth, 64, 72). produced_ns: when the broker took it, UTC nanoseconds since 1970, 0 if
    unknown.
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

Contents = dict[tuple[int, int], set[int]]
"""Content hashes by (run, lumisection)."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What one commit filed."""

    snapshot: str
    rows: int
    duplicates: int
    revisions: int


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
    """The row of a lumisection. Raises ValueError, with the reason, for what this archive cannot hold.

    produced_ns: when the broker took it, UTC nanoseconds since 1970; what is no such time (a producer may claim any) is
    unknown, and no reason to refuse the row. max_events: the most that a lumisection can have.
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
        )
    )
    return row_of(
        offset,
        record.run,
        record.lumisection,
        np.ascontiguousarray(counts, dtype=dtype.newbyteorder("<")),
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


class ArchiveWriter:
    """Appends to an archive's logs. Any number of writers, in any number of processes, may share an archive."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._commits = archive.commits()
        self._index = RowIndex()
        self._imported = ImportedDatasets()
        self._agreeing: set[int] = set()
        self._own_snapshot = ""

    def rows(self, feed: str, partition: int) -> int:
        """Rows in the partition's log as this writer last saw it."""
        log = self._index.logs.get((feed, partition))
        return 0 if log is None else log.rows.size

    def append(
        self,
        feed: str,
        partition: int,
        entries: Sequence[Entry],
        expected_offset: int,
        next_offset: int,
        ledger: Mapping[str, str | int] | None = None,
    ) -> Appended:
        """File entries that tile [expected_offset, next_offset), in the order of their offsets, in one commit.

        A row whose run, lumisection and content are in the archive already is filed as a duplicate; one with other content
        is filed as a revision. A partition without a log gets one that begins at expected_offset. ledger: a line for the
        table of imports, filed in the same commit. On return the commit is on the disk.

        Raises, with nothing filed, OffsetConflict unless the stored next_offset is expected_offset, SourceConflict where a row
        comes from another source than the archive's, DatasetConflict where that is not the data set that its run was imported
        of (of imports, the importer asks that), and ArchiveError where the storage cannot be read or written.
        """
        try:
            return self.append_parts(feed, partition, [entries], expected_offset, next_offset, ledger)
        except ClockSetBack:
            return self.append_parts(feed, partition, [entries], expected_offset, next_offset, ledger)

    def append_parts(
        self,
        feed: str,
        partition: int,
        parts: Iterable[Sequence[Entry]],
        expected_offset: int,
        next_offset: int,
        ledger: Mapping[str, str | int] | None = None,
    ) -> Appended:
        """As `append`, of entries that come part by part: one commit, and no more than a part is held in memory.

        parts: asked only once the offset was found to be the expected one. The archive stays locked until the last. Raises
        ClockSetBack where the same call may be made again.
        """
        with self._commits.begin() as change:
            if layout.check_version(change.root, self.archive.path) < layout.LAYOUT_VERSION:
                self._migrate(change)
            root = change.root
            stored = stored_next_offset(root, feed, partition)
            if stored is not None and stored != expected_offset:
                raise OffsetConflict(expected_offset, stored)
            if change.parent != self._own_snapshot:
                self._index.update(root)
                self._imported.update(root)
            # Order among partitions is told by this time, so a clock that was set back must not turn it round.
            committed_ns = max(time.time_ns(), self._index.last_committed_ns + 1)
            if stored is None:
                layout.make_log(root, feed, partition, expected_offset, self.archive.geometry, self.archive.dtype.name)
            log = root[layout.feed_path(feed, partition)]
            at, filed, duplicates, revisions = expected_offset, 0, 0, 0
            fresh: Contents = {}
            for_index: list[tuple[dict[str, Column] | None, dict[str, np.ndarray] | None]] = []
            for entries in parts:
                at = _check_tiling(entries, at)
                _take_source(root, entries)
                if feed != IMPORT_FEED and self._imported.by_run:
                    self._check_datasets(entries)
                rows, control, revised = self._sort_out(entries, fresh)
                row_columns = _row_columns(rows, self.archive.dtype, committed_ns) if rows else None
                control_columns = _control_columns(control) if control else None
                if row_columns:
                    append_columns(log, row_columns)
                if control_columns:
                    append_columns(log["control"], control_columns)
                kept = row_columns and {name: row_columns[name] for name in ROW_FIELDS}
                for_index.append((kept, control_columns))
                filed, revisions = filed + len(rows), revisions + revised
                duplicates += sum(entry.kind is ControlKind.DUPLICATE for entry in control)
            if at != next_offset or next_offset <= expected_offset:
                raise ValueError(f"the entries end at {at}, the batch at {next_offset}")
            log.attrs["next_offset"] = next_offset
            if ledger is not None:
                append_line(root["imports"], layout.IMPORT_COLUMNS, ledger)
            snapshot = change.commit(
                f"{feed}/{partition} [{expected_offset}, {next_offset})",
                lambda committed: stored_next_offset(committed, feed, partition) == next_offset,
            )
            for columns in for_index:
                self._index.add((feed, partition), *columns)
            self._own_snapshot = snapshot
        return Appended(snapshot, filed, duplicates, revisions)

    def _migrate(self, change: Change) -> None:
        """Bring the archive to the present layout, in a commit of its own; the change goes on after it."""
        before = migrate(change.root)
        change.commit(
            f"layout {before} to {layout.LAYOUT_VERSION}",
            lambda committed: layout.check_version(committed, self.archive.path) == layout.LAYOUT_VERSION,
        )
        change.go_on()

    def _check_datasets(self, entries: Sequence[Entry]) -> None:
        """Raise DatasetConflict where rows of a run that was imported are of another data set.

        Maps that the archive holds already are of the same one, whatever it was called; a blank map tells nothing.
        """
        imported = self._imported.by_run
        doubtful: dict[int, list[Row]] = {}
        for entry in entries:
            if isinstance(entry, Row) and entry.source and entry.run in imported and entry.run not in self._agreeing:
                doubtful.setdefault(entry.run, []).append(entry)
        reasons: dict[int, str] = {}
        for run, rows in doubtful.items():
            contents = self._index.contents(run)
            reason = self._imported.reason_against(run, rows[0].source)
            held = [row for row in rows if row.content in contents.get(row.lumisection, ())]
            other = [row for row in rows if row.lumisection in contents and row.content not in contents[row.lumisection]]
            if not reason or self._has_messages(run) or (not other and any(row.occupancy.any() for row in held)):
                self._agreeing.add(run)
                continue
            reasons |= {row.offset: reason for row in rows if row.content not in contents.get(row.lumisection, ())}
        if reasons:
            raise DatasetConflict(reasons)

    def _has_messages(self, run: int) -> bool:
        """Whether rows of the run were filed from messages."""
        return any(bool((log.rows["run"] == run).any()) for (feed, _), log in self._index.logs.items() if feed != IMPORT_FEED)

    def _sort_out(self, entries: Sequence[Entry], fresh: Contents) -> tuple[list[tuple[Row, Quality]], list[Control], int]:
        """Rows to store with their quality, control entries (duplicates among them), number of revisions.

        fresh: what the parts before, which are not in the index yet, brought; added to.
        """
        rows: list[tuple[Row, Quality]] = []
        control: list[Control] = []
        revisions = 0
        for entry in entries:
            if isinstance(entry, Control):
                control.append(entry)
                continue
            stored = self._index.contents(entry.run).get(entry.lumisection, set())
            new = fresh.setdefault((entry.run, entry.lumisection), set())
            if entry.content in stored or entry.content in new:
                control.append(
                    Control(entry.offset, entry.offset + 1, ControlKind.DUPLICATE, entry.run, entry.lumisection, "same content")
                )
                continue
            revised = bool(stored or new)
            revisions += revised
            rows.append((entry, entry.quality | Quality.REVISION if revised else entry.quality))
            new.add(entry.content)
        return rows, control, revisions


def _take_source(root: zarr.Group, entries: Sequence[Entry]) -> None:
    """The first row that has a source names the archive; a row of another one is refused."""
    stored = source = str(root.attrs["source"])
    for entry in entries:
        if isinstance(entry, Row) and entry.source:
            source = source or entry.source
            if entry.source != source:
                raise SourceConflict(source)
    if source != stored:
        root.attrs["source"] = source


def stored_next_offset(root: zarr.Group, feed: str, partition: int) -> int | None:
    try:
        return int(root[layout.feed_path(feed, partition)].attrs["next_offset"])
    except KeyError:
        return None


def _check_tiling(entries: Sequence[Entry], at: int) -> int:
    """Raise ValueError unless each offset from `at` on lies in exactly one entry, in order; returns the first past them."""
    for entry in entries:
        if entry.offset != at:
            raise ValueError(f"offset {at} lies in no entry, the next one starts at {entry.offset}")
        at = entry.offset + 1 if isinstance(entry, Row) else entry.until
    return at


def _row_columns(rows: list[tuple[Row, Quality]], dtype: np.dtype, committed_ns: int) -> dict[str, Column]:
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


def _control_columns(control: list[Control]) -> dict[str, np.ndarray]:
    return {
        "offset": np.array([entry.offset for entry in control], np.int64),
        "until": np.array([entry.until for entry in control], np.int64),
        "kind": np.array([entry.kind for entry in control], np.uint8),
        "run": np.array([entry.run for entry in control], np.int64),
        "lumisection": np.array([entry.lumisection for entry in control], np.int64),
        "reason": np.array([entry.reason for entry in control], dtype=object),
    }
