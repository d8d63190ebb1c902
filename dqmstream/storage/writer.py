"""Writing: a batch of a partition's offsets is filed whole and once, or refused.

Exactly once rests on one rule: rows and `next_offset` are written in one commit, and a batch is refused unless it starts at the
stored `next_offset`. That also refuses a worker that was presumed dead and wakes up with a fresh session, since the stored
offset has moved on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zarr

from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.clock import ClockSetBack
from dqmstream.storage.columns import Column, append_columns, append_line, number, subgroup
from dqmstream.storage.commits import Change
from dqmstream.storage.entries import Control, Entry, Row, check_tiling, control_columns, row_columns
from dqmstream.storage.imports.datasets import ImportedDatasets
from dqmstream.storage.layout import IMPORT_FEED, ControlKind, Quality
from dqmstream.storage.migrate import migrate
from dqmstream.storage.row_index import ROW_FIELDS, RowIndex


class OffsetConflict(Exception):
    """Another writer has filed this partition's offsets. stored: next_offset in the archive now, None if there is no log."""

    def __init__(self, expected: int, stored: int | None) -> None:
        super().__init__(f"the batch starts at offset {expected}, the archive continues at {stored}")
        self.stored = stored


class SourceConflict(Exception):
    """A row is of another source (dataset and monitoring element) than the whole archive. stored: the archive's source."""

    def __init__(self, stored: str) -> None:
        super().__init__(f"the archive holds {stored}")
        self.stored = stored


class DatasetConflict(Exception):
    """Rows of a run are of another data set than the file from which the run was imported. reasons: by offset of the row."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


Contents = dict[tuple[int, int], set[int]]
"""Content hashes of each (run, lumisection)."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Result of one commit."""

    snapshot: str
    rows: int
    duplicates: int
    revisions: int


@dataclass
class _Batch:
    """What was appended so far. contents: of its rows. columns: of rows and control entries, part by part, for the index."""

    contents: Contents = field(default_factory=dict)
    columns: list[tuple[dict[str, Column] | None, dict[str, np.ndarray] | None]] = field(default_factory=list)
    rows: int = 0
    duplicates: int = 0
    revisions: int = 0


class ArchiveWriter:
    """Appends to the logs of an archive. Any number of writers, in any number of processes, can share an archive."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._commits = archive.commits()
        self._index = RowIndex()
        self._imported = ImportedDatasets()
        self._agreeing: set[int] = set()
        self._own_snapshot = ""

    def rows(self, feed: str, partition: int) -> int:
        """Number of rows in the partition's log, as this writer last saw it."""
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

        A row whose run, lumisection and content are in the archive already becomes a duplicate; a row of a known lumisection
        with other content becomes a revision. A partition without a log gets one that begins at expected_offset. ledger: a line
        for the table of imports, filed in the same commit. When this returns, the commit is on the disk.

        Raises, with nothing filed: OffsetConflict unless the stored next_offset is expected_offset; SourceConflict and
        DatasetConflict for rows that belong to another archive (for imports, the importer checks the latter); ArchiveError if
        the storage cannot be read or written.
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
        """As `append`, but for entries that come in parts: still one commit, with one part at a time in memory.

        parts: read after the offset was checked; the archive is locked until the last part. Raises as `append`, and
        ClockSetBack if the same call can be repeated at once.
        """
        with self._commits.begin() as change:
            log = self._log_at(change, feed, partition, expected_offset)
            # This time orders rows of different partitions, so it must grow even if the clock was set back.
            committed_ns = max(time.time_ns(), self._index.last_committed_ns + 1)
            at, batch = expected_offset, _Batch()
            for entries in parts:
                at = check_tiling(entries, at)
                _take_source(change.root, entries)
                if feed != IMPORT_FEED and self._imported.by_run:
                    self._check_datasets(entries)
                self._append_part(log, entries, committed_ns, batch)
            if at != next_offset or next_offset <= expected_offset:
                raise ValueError(f"the entries end at {at}, the batch at {next_offset}")
            log.attrs["next_offset"] = next_offset
            if ledger is not None:
                append_line(subgroup(change.root, "imports"), layout.IMPORT_COLUMNS, ledger)
            snapshot = change.commit(
                f"{feed}/{partition} [{expected_offset}, {next_offset})",
                lambda committed: stored_next_offset(committed, feed, partition) == next_offset,
            )
            for columns in batch.columns:
                self._index.add((feed, partition), *columns)
            self._own_snapshot = snapshot
        return Appended(snapshot, batch.rows, batch.duplicates, batch.revisions)

    def _log_at(self, change: Change, feed: str, partition: int, offset: int) -> zarr.Group:
        """The partition's log in the change, made if missing, with the index brought up to date.

        Raises OffsetConflict unless the log ends at this offset.
        """
        if layout.check_version(change.root, self.archive.path) < layout.LAYOUT_VERSION:
            self._migrate(change)
        root = change.root
        stored = stored_next_offset(root, feed, partition)
        if stored is not None and stored != offset:
            raise OffsetConflict(offset, stored)
        if change.parent != self._own_snapshot:
            self._index.update(root)
            self._imported.update(root)
        if stored is None:
            layout.make_log(root, feed, partition, offset, self.archive.geometry, self.archive.dtype.name)
        return subgroup(root, layout.feed_path(feed, partition))

    def _append_part(self, log: zarr.Group, entries: Sequence[Entry], committed_ns: int, batch: _Batch) -> None:
        """Append a part's rows and control entries to the log, and note them in the batch."""
        rows, control, revised = self._sort_out(entries, batch.contents)
        row_values = row_columns(rows, self.archive.dtype, committed_ns) if rows else None
        control_values = control_columns(control) if control else None
        if row_values:
            append_columns(log, row_values)
        if control_values:
            append_columns(subgroup(log, "control"), control_values)
        kept = row_values and {name: row_values[name] for name in ROW_FIELDS}  # not the maps
        batch.columns.append((kept, control_values))
        batch.rows += len(rows)
        batch.revisions += revised
        batch.duplicates += sum(entry.kind is ControlKind.DUPLICATE for entry in control)

    def _migrate(self, change: Change) -> None:
        """Bring the archive to the present layout, in a commit before that of the change."""
        before = migrate(change.root)
        change.commit(
            f"layout {before} to {layout.LAYOUT_VERSION}",
            lambda committed: layout.check_version(committed, self.archive.path) == layout.LAYOUT_VERSION,
        )
        change.go_on()

    def _check_datasets(self, entries: Sequence[Entry]) -> None:
        """Raise DatasetConflict if rows of an imported run are of another data set.

        If the archive holds the same maps already, the data set is the same whatever its name; a blank map proves nothing.
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
        """Whether the run has rows that came as messages."""
        return any(bool((log.rows["run"] == run).any()) for (feed, _), log in self._index.logs.items() if feed != IMPORT_FEED)

    def _sort_out(self, entries: Sequence[Entry], fresh: Contents) -> tuple[list[tuple[Row, Quality]], list[Control], int]:
        """Rows to store with their quality, control entries with duplicates among them, and the number of revisions.

        fresh: contents of earlier parts of this batch, which are not in the index yet; this part's are added.
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
    """Give the archive the source of the first row that has one. Raises SourceConflict for a row of another source."""
    stored = source = str(root.attrs["source"])
    for entry in entries:
        if isinstance(entry, Row) and entry.source:
            source = source or entry.source
            if entry.source != source:
                raise SourceConflict(source)
    if source != stored:
        root.attrs["source"] = source


def stored_next_offset(root: zarr.Group, feed: str, partition: int) -> int | None:
    """First offset of the partition that is not in the archive with this root group; None if it has no log."""
    try:
        return number(subgroup(root, layout.feed_path(feed, partition)), "next_offset")
    except KeyError:
        return None
