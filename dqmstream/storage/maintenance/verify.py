"""Reading everything again, to find what was damaged: on the disk, or by hands that went behind the API.

What can be told: that each row is what `content` says, that each offset is accounted for once, that each lumisection is there
once and its revisions are flagged, that imports are what their ledger says, and what can no longer be read. Maps go by in
blocks; of the columns, 64 bytes a row are kept, about 90 MB for a year.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from dqmstream.lumisection import IETA, IPHI, MAX_EVENTS, MAX_NUMBER, check_counts, check_plausible, content_hash
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.labels.versions import LABEL_COLUMNS, VERSION_COLUMNS
from dqmstream.storage.layout import IMPORT_FEED, ROWS_PER_CHUNK, ControlKind, Quality
from dqmstream.storage.maintenance.tables import UNREADABLE, Finding, Table, length_of, line_of, numbered, read_table

CHUNKS_AT_ONCE = 4
Progress = Callable[[int, int], None]


def rows_of(archive: Archive) -> int:
    """Rows of all logs, every revision: what `verify` reads."""
    return sum(length_of(log, "run") for _, _, log in archive.logs())


def verify(
    archive: Archive,
    progress: Progress = lambda done, total: None,
    *,
    max_events: float = MAX_EVENTS,
    implausible: list[Finding] | None = None,
) -> list[Finding]:
    """Everything that is wrong in the archive at the snapshot it is pinned to. progress: rows done, rows in all.

    implausible: a list that rows are added to which are what was filed, and are refused today (`lumisection.check_plausible`).
    Rows are told apart by when they were filed, so flags of revisions are only as good as the clock was (of layout 1; since
    then that time never goes back).
    """
    findings = _root_findings(archive)
    total, done = rows_of(archive), 0
    logs = []
    for feed, partition, group in archive.logs():
        log = _Log(f"{feed}/{partition}", group, findings, max_events, [] if implausible is None else implausible)
        log.read(archive)
        for rows in log.check_maps(archive):
            done += rows
            progress(done, total)
        log.check_rows()
        log.check_tiling()
        logs.append(log)
    _check_repeats(logs, findings)
    _check_duplicates(logs, findings)
    imported = [log for log in logs if log.name == f"{IMPORT_FEED}/0"]
    _check_imports(archive.root["imports"], imported[0] if imported else None, findings)
    _check_labels(archive.root, findings)
    return findings


@dataclass
class _Log:
    """A partition's log as far as it can be read."""

    name: str
    group: zarr.Group
    findings: list[Finding]
    max_events: float
    implausible: list[Finding]
    rows: Table = field(default_factory=Table)
    control: Table = field(default_factory=Table)

    def read(self, archive: Archive) -> None:
        """Read all columns but the maps."""
        wanted = {name: value for name, value in layout.ROW_COLUMNS.items() if _expected(name, archive)}
        self.rows = read_table(self.group, wanted, self.name, "row", self.findings, ("occupancy",))
        self.control = read_table(self.group, layout.CONTROL_COLUMNS, self.name, "entry", self.findings, (), "control/")

    def find(self, what: str, place: str = "") -> None:
        self.findings.append(Finding(self.name + place, what))

    def rows_at(self, first: int, last: int) -> str:
        """How rows first..last are called; the lumisection is that of the first."""
        columns, known = self.rows.columns, self.rows.both("run", "lumisection")
        named = f" (run {columns['run'][first]}, lumisection {columns['lumisection'][first]})" if known[first] else ""
        return f"{self.name} {numbered('row', first, last)}{named}"

    def tell(self, wrong: np.ndarray, what: str) -> None:
        """A finding for each stretch of rows that the mask names."""
        self.findings += [Finding(self.rows_at(first, last), what) for first, last in _spans(np.flatnonzero(wrong))]

    def check_maps(self, archive: Archive) -> Iterator[int]:
        """Read every map, and compare it to what was hashed when it was filed. Yields how many rows were read."""
        array = self.group.get("occupancy")
        if array is None or array.shape[1:] != archive.geometry.shape or array.dtype != archive.dtype:
            self.findings.append(
                Finding(self.name, f"occupancy is not {archive.dtype} of shape (row, *{archive.geometry.shape})")
            )
            return
        hashed = self.rows.both("n_events", "pileup", "content")
        altered = np.zeros(self.rows.size, bool)
        for start in range(0, self.rows.size, CHUNKS_AT_ONCE * ROWS_PER_CHUNK):
            stop = min(start + CHUNKS_AT_ONCE * ROWS_PER_CHUNK, self.rows.size)
            for first, block in self._blocks(array, start, stop):
                self._check_values(block, first, archive.dtype)
                self._check_plausible(block, first)
                for row in np.flatnonzero(hashed[first : first + len(block)]).tolist():
                    n_events, pileup = (float(self.rows.columns[name][first + row]) for name in ("n_events", "pileup"))
                    altered[first + row] = (
                        content_hash(block[row], n_events, pileup) != self.rows.columns["content"][first + row]
                    )
            yield stop - start
        self.tell(altered, "map, n_events or pileup is not what was filed: `content` differs")

    def _blocks(self, array: Any, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Rows start..stop in one piece or, where that cannot be read, chunk by chunk without those that cannot."""
        try:
            blocks = [(start, array[start:stop])]
        except UNREADABLE:
            blocks = []
            for first in range(start, stop, ROWS_PER_CHUNK):
                last = min(first + ROWS_PER_CHUNK, stop)
                try:
                    blocks.append((first, array[first:last]))
                except UNREADABLE as error:
                    self.findings.append(Finding(self.rows_at(first, last - 1), f"occupancy cannot be read: {line_of(error)}"))
        yield from blocks

    def _check_values(self, block: np.ndarray, first: int, dtype: np.dtype) -> None:
        try:
            check_counts(block, dtype)
        except ValueError:
            for row, counts in enumerate(block):
                try:
                    check_counts(counts, dtype)
                except ValueError as error:
                    self.findings.append(Finding(self.rows_at(first + row, first + row), str(error)))

    def _check_plausible(self, block: np.ndarray, first: int) -> None:
        here = slice(first, first + len(block))
        conditions = [np.where(self.rows.known[n][here], self.rows.columns[n][here], np.nan) for n in ("n_events", "pileup")]
        largest = block.reshape(len(block), -1).max(axis=1)
        for row, (high, n_events, pileup) in enumerate(zip(largest.tolist(), *(c.tolist() for c in conditions), strict=True)):
            try:
                check_plausible(high, n_events, pileup, self.max_events)
            except ValueError as error:
                self.implausible.append(Finding(self.rows_at(first + row, first + row), str(error)))

    def check_rows(self) -> None:
        """Values that no row can have, and offsets that do not increase."""
        columns, known = self.rows.columns, self.rows.known
        for name in ("run", "lumisection"):
            self.tell(known[name] & ((columns[name] < 1) | (columns[name] > MAX_NUMBER)), f"{name} is not in 1..{MAX_NUMBER}")
        for name in ("n_events", "pileup"):
            fine = np.isnan(columns[name]) | ((columns[name] >= 0) & np.isfinite(columns[name]))
            self.tell(known[name] & ~fine, f"{name} is negative or infinite")
        unknown_flags = columns["quality"] & ~np.uint8(Quality.INTERPOLATED | Quality.REVISION)
        self.tell(known["quality"] & (unknown_flags != 0), "quality has a flag that means nothing")
        there = np.flatnonzero(known["offset"])
        falls = np.zeros(self.rows.size, bool)
        falls[there[1:][np.diff(columns["offset"][there]) <= 0]] = True
        self.tell(falls, "offset is not above that of the row before")

    def check_tiling(self) -> None:
        """Rows and control entries must cover [first_offset, next_offset), each offset once."""
        entries, known = self.control.columns, self.control.both("offset", "until", "kind")
        start, until = entries["offset"][known], entries["until"][known]
        for entry in np.flatnonzero(known)[(until <= start) | ~np.isin(entries["kind"][known], list(ControlKind))].tolist():
            self.findings.append(
                Finding(f"{self.name} control entry {entry}", "it covers no offset, or its kind means nothing")
            )
        first, following = self.group.attrs.get("first_offset"), self.group.attrs.get("next_offset")
        if not isinstance(first, int) or not isinstance(following, int):
            self.find("first_offset or next_offset is missing")
            return
        offsets = self.rows.columns["offset"][self.rows.known["offset"]]
        starts, ends = np.concatenate([offsets, start]), np.concatenate([offsets + 1, until])
        order = np.lexsort((ends, starts))
        starts = np.append(starts[order], following)
        reached = np.maximum.accumulate(np.concatenate([[first], ends[order]]))
        excused = self._unread_offsets(first, following)
        for place in np.flatnonzero(starts != reached).tolist():
            begins, at = int(starts[place]), int(reached[place])
            if begins > at:
                if not any(low <= at and begins <= high for low, high in excused):
                    self.findings.append(
                        Finding(self.name, f"{numbered('offset', at, begins - 1)} in no row and no control entry")
                    )
            elif place == len(starts) - 1:
                self.findings.append(
                    Finding(self.name, f"{numbered('offset', begins, at - 1)} at or past next_offset {following}")
                )
            elif begins < first:
                self.find(f"offset {begins} lies before first_offset {first}")
            else:
                self.find(f"offset {begins} is covered twice")

    def _unread_offsets(self, first: int, following: int) -> list[tuple[int, int]]:
        """Offsets [low, high) among which are those of rows and entries that could not be read: no gap to be told again."""
        if not self.control.both("offset", "until", "kind").all():
            return [(first, following)]
        offsets, known = self.rows.columns["offset"], self.rows.known["offset"]
        return [
            (
                int(offsets[low - 1]) + 1 if low else first,
                int(offsets[high + 1]) if high + 1 < self.rows.size else following,
            )
            for low, high in _spans(np.flatnonzero(~known))
        ]


def _check_repeats(logs: list[_Log], findings: list[Finding]) -> None:
    """No content of a lumisection twice, and those that came after another, and no others, are flagged as revisions."""
    names = ("run", "lumisection", "content", "quality", "committed")
    known = [np.flatnonzero(log.rows.both(*names)) for log in logs]
    all_known = all(len(rows) == log.rows.size for rows, log in zip(known, logs, strict=True))
    if not logs:
        return
    run, lumisection, content, quality, committed = (
        np.concatenate([log.rows.columns[name][rows] for log, rows in zip(logs, known, strict=True)]) for name in names
    )
    place = np.repeat(np.arange(len(logs)), [len(rows) for rows in known])
    row = np.concatenate(known)

    def tell(wrong: np.ndarray, what: str) -> None:
        for log in range(len(logs)):
            here = np.zeros(logs[log].rows.size, bool)
            here[row[wrong[place[wrong] == log]]] = True
            logs[log].tell(here, what)

    def after_equal(order: np.ndarray, *keys: np.ndarray) -> np.ndarray:
        """Of those in this order, which have the same keys as the one before."""
        return np.append(False, np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys]))[: len(order)]

    order = np.lexsort((row, place, committed, lumisection, run))
    later = after_equal(order, run, lumisection)
    flagged = (quality[order] & Quality.REVISION) != 0
    tell(order[later & ~flagged], "not flagged as a revision, and the lumisection was filed before")
    if all_known:
        tell(order[flagged & ~later], "flagged as a revision, and the lumisection was not filed before")
    order = np.lexsort((row, place, committed, content, lumisection, run))
    tell(order[after_equal(order, run, lumisection, content)], "filed twice: the same content is in an earlier row")


def _check_duplicates(logs: list[_Log], findings: list[Finding]) -> None:
    """A duplicate names a lumisection that is there. Not asked where rows cannot be read: it may be one of them."""
    names = ("run", "lumisection")
    if not all(log.rows.both(*names).all() for log in logs):
        return
    there = np.concatenate([_pairs(log.rows, np.arange(log.rows.size)) for log in logs]) if logs else np.empty(0, np.int64)
    for log in logs:
        known = log.control.both("kind", *names)
        entries = np.flatnonzero(known & (log.control.columns["kind"] == ControlKind.DUPLICATE))
        for entry in entries[~np.isin(_pairs(log.control, entries), there)].tolist():
            run, lumisection = (log.control.columns[name][entry] for name in names)
            what = f"a duplicate of run {run}, lumisection {lumisection}, which is not in the archive"
            findings.append(Finding(f"{log.name} control entry {entry}", what))


def _pairs(table: Table, entries: np.ndarray) -> np.ndarray:
    """(run, lumisection) as one number each."""
    return (table.columns["run"][entries] << 32) + table.columns["lumisection"][entries]


def _check_imports(group: zarr.Group, log: _Log | None, findings: list[Finding]) -> None:
    """The ledger's files, one behind the other, are what the import feed holds: start, rows or duplicates, stop."""
    table = read_table(group, layout.IMPORT_COLUMNS, "imports", "file", findings)
    if not table.both(*layout.IMPORT_COLUMNS).all():
        return
    digests = table.columns["sha256"]
    for file in np.flatnonzero([len(digest) != 64 for digest in digests.tolist()]).tolist():
        findings.append(Finding(f"imports file {file}", "its sha256 is none"))
    if len(set(digests.tolist())) < table.size:
        findings.append(Finding("imports", "the same sha256 is there twice"))
    if log is None:
        if table.size:
            findings.append(Finding("imports", f"{table.size} files are listed, and there is no feed {IMPORT_FEED}"))
        return
    kinds = log.control.both("offset", "kind", "run")
    rows = log.rows.both("offset", "run")
    if not (kinds.all() and rows.all()):
        return
    ends = dict(zip(log.control.columns["offset"].tolist(), np.arange(log.control.size).tolist(), strict=True))
    at = log.group.attrs.get("first_offset")
    for file in np.argsort(table.columns["offset"], kind="stable").tolist():
        offset, length, run = (int(table.columns[name][file]) for name in ("offset", "rows", "run"))
        stop = offset + length + 1
        where = f"imports file {file} ({table.columns['name'][file]})"
        if offset != at:
            findings.append(Finding(where, f"it begins at offset {offset}, the file before ended at {at}"))
        at = stop + 1
        for end, kind in ((offset, ControlKind.START), (stop, ControlKind.STOP)):
            entry = ends.get(end)
            found = None if entry is None else (log.control.columns["kind"][entry], log.control.columns["run"][entry])
            if found != (kind, run):
                findings.append(Finding(where, f"offset {end} is not the {kind.name.lower()} of run {run}"))
        inside = (log.rows.columns["offset"] > offset) & (log.rows.columns["offset"] < stop)
        if (log.rows.columns["run"][inside] != run).any():
            findings.append(Finding(where, f"not all its rows are of run {run}"))
    if at != log.group.attrs.get("next_offset"):
        findings.append(Finding(log.name, f"the imports end at offset {at}, the feed at {log.group.attrs.get('next_offset')}"))


def _check_labels(root: zarr.Group, findings: list[Finding]) -> None:
    """Each line of labels is of a version that there is, versions follow each other, and ranges are not reversed."""
    for kind, columns in LABEL_COLUMNS.items():
        if (group := root.get(where := f"labels/{kind}")) is None:
            continue
        lines = read_table(group, columns, where, "line", findings)
        versions = read_table(group, VERSION_COLUMNS, where, "version", findings, (), "versions/")
        if not lines.both(*columns).all():
            continue
        version = lines.columns["version"]
        if (np.diff(version, prepend=1) < 0).any() or (version > versions.size).any():
            findings.append(Finding(where, f"its lines are not of the versions 1 to {versions.size}, in order"))
        if kind == "golden" and (lines.columns["first"] > lines.columns["last"]).any():
            findings.append(Finding(where, "it holds a reversed range"))


def _root_findings(archive: Archive) -> list[Finding]:
    """What is wrong with the coordinates."""
    findings = []
    for name, values in (("ieta", IETA), ("iphi", IPHI)):
        try:
            fine = np.array_equal(archive.root[name][:], values)
        except UNREADABLE as error:
            findings.append(Finding(name, f"cannot be read: {line_of(error)}"))
            continue
        if not fine:
            findings.append(Finding(name, "is not the geometry's"))
    return findings


def _expected(column: str, archive: Archive) -> bool:
    return layout.SINCE_VERSION.get(column, 1) <= archive.layout_version


def _spans(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of each stretch of consecutive numbers among ascending ones."""
    for stretch in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        if len(stretch):
            yield int(stretch[0]), int(stretch[-1])
