"""Verification: everything is read again, to find damage on the disk or changes that bypassed this program.

Checked is that each map has the hash in `content`, that each offset occurs once, that each lumisection is there once and its
revisions are flagged, that imports are as their ledger says, and that everything can be read. Maps are read in blocks. Of the
columns, 64 bytes a row stay in memory: about 90 MB for a year.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import zarr

from dqmstream.lumisection import IETA, IPHI, MAX_EVENTS
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import array, subgroup
from dqmstream.storage.labels.versions import LABEL_COLUMNS, VERSION_COLUMNS
from dqmstream.storage.layout import IMPORT_FEED, ControlKind, Quality
from dqmstream.storage.maintenance.findings import UNREADABLE, Finding, ReadableTable, length_of, line_of, read_table
from dqmstream.storage.maintenance.log_check import LogCheck

Progress = Callable[[int, int], None]


def rows_of(archive: Archive) -> int:
    """Number of rows that `verify` reads: of all logs, with all revisions."""
    return sum(length_of(log, "run") for _, _, log in archive.logs())


def verify(
    archive: Archive,
    progress: Progress = lambda done, total: None,
    *,
    max_events: float = MAX_EVENTS,
    implausible: list[Finding] | None = None,
) -> list[Finding]:
    """All findings in the archive at the reader's snapshot. progress: rows done, rows in all.

    max_events: most events of a lumisection. implausible: a list to which undamaged rows are added that would be refused today
    (`lumisection.check_plausible`). In layout 1 the order of revisions depends on the machine's clock, so its flags are only as
    good as the clock was; later layouts store times that never go back.
    """
    findings = _root_findings(archive)
    total, done = rows_of(archive), 0
    logs = []
    for feed, partition, group in archive.logs():
        log = LogCheck(f"{feed}/{partition}", group, findings, max_events, [] if implausible is None else implausible)
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
    _check_imports(subgroup(archive.root, "imports"), imported[0] if imported else None, findings)
    _check_labels(archive.root, findings)
    return findings


def _check_repeats(logs: list[LogCheck], findings: list[Finding]) -> None:
    """Find contents that were filed twice, and wrong flags: a revision is a row whose lumisection was filed before."""
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
        """Which rows, in this order, have the same keys as the row before: bool."""
        return np.append(False, np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys]))[: len(order)]

    order = np.lexsort((row, place, committed, lumisection, run))
    later = after_equal(order, run, lumisection)
    flagged = (quality[order] & Quality.REVISION) != 0
    tell(order[later & ~flagged], "not flagged as a revision, and the lumisection was filed before")
    if all_known:
        tell(order[flagged & ~later], "flagged as a revision, and the lumisection was not filed before")
    order = np.lexsort((row, place, committed, content, lumisection, run))
    tell(order[after_equal(order, run, lumisection, content)], "filed twice: the same content is in an earlier row")


def _check_duplicates(logs: list[LogCheck], findings: list[Finding]) -> None:
    """Find duplicates of lumisections that the archive does not hold, unless unreadable rows may hold them."""
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


def _pairs(table: ReadableTable, entries: np.ndarray) -> np.ndarray:
    """(run, lumisection) of these entries as one number each: int64, (n,)."""
    return (table.columns["run"][entries] << 32) + table.columns["lumisection"][entries]


def _check_imports(group: zarr.Group, log: LogCheck | None, findings: list[Finding]) -> None:
    """Find files of the ledger that the import feed does not hold, one after another: start, rows or duplicates, stop."""
    table = read_table(group, layout.IMPORT_COLUMNS, "imports", "file", findings)
    if not table.both(*layout.IMPORT_COLUMNS).all():
        return
    digests = table.columns["sha256"]
    for file in np.flatnonzero([len(digest) != 64 for digest in digests.tolist()]).tolist():
        findings.append(Finding(f"imports file {file}", "its sha256 is not a SHA-256"))
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
    """Find lines of labels whose version does not exist or is out of order, and reversed ranges."""
    for kind, columns in LABEL_COLUMNS.items():
        where = f"labels/{kind}"
        if where not in root:
            continue
        group = subgroup(root, where)
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
    """Findings about the coordinates."""
    findings = []
    for name, values in (("ieta", IETA), ("iphi", IPHI)):
        try:
            fine = np.array_equal(np.asarray(array(archive.root, name)[:]), values)
        except UNREADABLE as error:
            findings.append(Finding(name, f"cannot be read: {line_of(error)}"))
            continue
        if not fine:
            findings.append(Finding(name, "is not the geometry's"))
    return findings
