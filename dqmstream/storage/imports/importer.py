"""Importing lumisections in every layout that users have: a run whole or not at all, and twice is once.

`storage.readers` says what files hold. All are checked before the archive is made or anything is written; then each run is
filed in one commit, a few hundred maps in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import IETA, MAX_EVENTS, RUN_FILE, Lumisection, check_counts, check_plausible, most_counts
from dqmstream.storage.archive import Archive
from dqmstream.storage.clock import ClockSetBack
from dqmstream.storage.imports.datasets import FiledDatasets, check_one_import
from dqmstream.storage.imports.find import find_files
from dqmstream.storage.imports.readers.arrays import read_array
from dqmstream.storage.imports.run_data import Dropped, RunData
from dqmstream.storage.labels.golden import Golden
from dqmstream.storage.labels.luminosity import LuminosityTable
from dqmstream.storage.layout import IMPORT_FEED, Kind, Quality
from dqmstream.storage.writer import ArchiveWriter, Control, Entry, OffsetConflict, Row, SourceConflict, make_row

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class CheckedRun:
    """A run that was found good. rounding: the largest difference, in counts, that the archive's dtype makes."""

    data: RunData
    sha256: str
    rounding: float


@dataclass(frozen=True)
class Imported:
    """What came of a run of one or several files. known: it had been imported before, and nothing changed.

    lumisections: taken. rounding: the largest difference, in counts, between the file's values and the stored ones.
    dropped: what was not taken, and why. notes: what else is to be known.
    """

    name: str
    run: int
    lumisections: int
    rows: int
    duplicates: int
    revisions: int
    rounding: float
    known: bool
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taking:
    """What is asked of an import.

    dtype: of the archive. depths: of the archive, None where nobody said. run: number of the only file, where its name has
    none. interpolated: mark every row as interpolated, as in the two published files. crop: leave out what lies beyond
    |ieta| 32. golden: only lumisections that it names. luminosity: tables that give events and pileup. source: dataset and
    monitoring element to file all under; stored_source: the archive's own. scratch: folder for maps that must be sorted.
    max_events: the most that a lumisection can have.
    """

    dtype: np.dtype
    depths: int | None = None
    run: int | None = None
    interpolated: bool = False
    crop: bool = False
    golden: Golden | None = None
    luminosity: Sequence[LuminosityTable] = ()
    source: str | None = None
    stored_source: str = ""
    scratch: Path | None = None
    max_events: float = MAX_EVENTS


def import_files(
    paths: Sequence[Path],
    archive: Callable[[], Archive],
    *,
    dtype: np.dtype,
    depths: int | None,
    run: int | None = None,
    interpolated: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> list[Imported]:
    """Import files, or folders of them, of which nothing more is asked: see `import_runs`."""
    return import_runs(paths, archive, Taking(dtype, depths, run, interpolated), progress)[0]


def import_runs(
    paths: Sequence[Path],
    archive: Callable[[], Archive],
    taking: Taking,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[list[Imported], list[LuminosityTable]]:
    """Import the runs of files, or of folders of them; returns what came of each, and the luminosity tables beside them.

    archive: opens or makes the archive, once every file was found good. progress: called with "read", "check" or "import",
    what is done and what there is in all. Raises InputError for the first file that cannot be used.
    """
    runs, tables = _read(paths, taking, progress)
    check_one_import(runs)
    _check_sources(runs, taking)
    checked = []
    for i, data in enumerate(runs):
        progress("check", i, len(runs))
        checked.append(_check(data, taking.interpolated, taking.dtype, taking.depths or 1, taking.max_events))
    progress("check", len(runs), len(runs))
    _check_each_run_once(checked)
    writer = ArchiveWriter(archive())
    known = writer.archive.imported()
    filed = FiledDatasets(writer.archive)
    for one in checked:
        _check_dataset(writer.archive, filed, one, taking)
    done = []
    for i, one in enumerate(checked):
        progress("import", i, len(checked))
        done.append(_import_run(writer, one, taking, known))
        known[one.sha256] = one.data.run
    progress("import", len(checked), len(checked))
    return done, tables


def read_run_file(path: Path, *, interpolated: bool = False) -> CheckedRun:
    """One file in the original layout, with the sidecars beside it, checked as an import checks it; any number of depths.

    Raises InputError if it cannot be used, or its name does not tell the run.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if RUN_FILE.match(path.name) is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy")
    return _check(read_array(path, None, {}, False), interpolated, np.dtype("float32"), None)


def _read(paths: Sequence[Path], taking: Taking, progress: Progress) -> tuple[list[RunData], list[LuminosityTable]]:
    """Every run of the files, with the conditions that tables give and without what is not golden."""
    found = find_files(paths)
    if taking.run is not None and (len(found.arrays) != 1 or found.groups or found.parquet):
        raise InputError(
            f"--run names the run of one .npy file of maps: give it alone ({found.count} files are given). Group files are "
            "named by their folder, Run<number>, and Parquet holds the run"
        )
    runs = [read_array(path, taking.run, found.sidecars, taking.crop) for path in found.arrays]
    tables = []
    if found.groups:
        from dqmstream.storage.imports.readers.groups import read_group

        for path in found.groups:
            data, table = read_group(path, taking.crop)
            runs.append(data)
            tables += [table] if table else []
    if found.parquet:
        from dqmstream.storage.imports.readers.dials import read_dials

        runs += read_dials(
            found.parquet,
            taking.depths,
            crop=taking.crop,
            scratch=taking.scratch,
            progress=lambda done, total: progress("read", done, total),
        )
    if found.notes:
        runs[0] = replace(runs[0], notes=(*runs[0].notes, *found.notes))  # what is of the files as a whole is said once
    only_run = len({data.run for data in runs}) == 1
    for table in taking.luminosity:
        if not (table.has_runs or only_run):
            raise InputError(f"{table.name} names no run (run_number), and several runs are imported: add that column")
        runs = [_with_luminosity(data, table, taking.max_events) for data in runs]
    if taking.source:
        runs = [replace(data, source=taking.source if data.source else "") for data in runs]
    if taking.golden:
        golden = taking.golden
        runs = [
            data.only(golden.is_good(data.run, data.lumisection), f"not good in {golden.name}") if data.size else data
            for data in runs
        ]
    return runs, tables


def _with_luminosity(data: RunData, table: LuminosityTable, max_events: float) -> RunData:
    """The run with events and pileup as the table has them, and as before where it has none, or none that the map allows."""
    found = table.of(data.run, data.lumisection)
    given = ~np.logical_and.reduce([np.isnan(values) for values in found.values()])
    notes = [f"{table.name}: conditions of {int(given.sum())} of {data.size} lumisections"]
    if len(known := np.flatnonzero(~np.isnan(found["n_events"]))):
        largest = np.concatenate([block.reshape(len(block), -1).max(axis=1) for _, block in data.pieces()])
        said = found["n_events"][known]
        if len(wrong := known[(said > max_events) | (largest[known] > most_counts(said, max_events))]):
            notes.append(
                f"{table.name}: events of {len(wrong)} lumisections left out, from {data.lumisection[wrong[0]]} on: a channel "
                "counts more, or they are above --max-events"
            )
            found["n_events"][wrong] = np.nan
    events, pileup = (
        np.where(np.isnan(found[name]), before, found[name])
        for name, before in (("n_events", data.events), ("pileup", data.pileup))
    )
    return replace(data, events=events, pileup=pileup, notes=(*data.notes, *notes))


def _check_sources(runs: Sequence[RunData], taking: Taking) -> None:
    """Raise InputError where runs are of another source than the archive, or than each other, and nobody gave one for all."""
    if taking.source:
        return
    stored, holder = taking.stored_source, "the archive"
    for data in runs:
        if data.source and stored and data.source != stored:
            raise InputError(
                f"run {data.run} of {data.name} is of {data.source}, {holder} of {stored}: "
                "import it into an archive of its own, or give --source NAME to file both under one name"
            )
        if data.source and not stored:
            stored, holder = data.source, f"run {data.run} of {data.name}"


def _check_each_run_once(checked: Sequence[CheckedRun]) -> None:
    """Raise InputError where two files are of one run and differ: which of them is the revision nothing tells."""
    first: dict[int, CheckedRun] = {}
    for one in checked:
        other = first.setdefault(one.data.run, one)
        if one.sha256 != other.sha256:
            raise InputError(
                f"{other.data.name} and {one.data.name} are both of run {one.data.run}, with different contents: give one of "
                "them (a newer file that is imported later is a revision)"
            )


def _check_dataset(archive: Archive, filed: FiledDatasets, run: CheckedRun, taking: Taking) -> None:
    """Raise InputError where the run would replace, in the archive, that of another data set."""
    data = run.data

    def is_filed() -> bool:
        """Whether those of its lumisections that the archive has are the same there, and there are any."""
        contents, found = archive.index.contents(data.run), False
        for entries in _parts(archive, data, taking, 0):
            for entry in entries:
                if isinstance(entry, Row) and (stored := contents.get(entry.lumisection)):
                    found = True
                    if entry.content not in stored:
                        return False
        return found

    filed.check(data, is_filed)


def _check(
    data: RunData, interpolated: bool, dtype: np.dtype, depths: int | None, max_events: float = MAX_EVENTS
) -> CheckedRun:
    """depths: of the archive; None where any number will do."""
    if depths is not None and data.depths != depths:
        raise InputError(
            f"{data.name} holds {data.depths} depth(s), the archive {depths}: a new one is made with --depths {data.depths}"
        )
    counts = data.counts
    shape = (data.size, *data.map_shape)
    digest = hashlib.sha256(f"run {data.run} interpolated {interpolated} {counts.dtype.str} {shape}".encode())
    rounding = 0.0
    for k, (n_events, pileup) in enumerate(zip(data.events.tolist(), data.pileup.tolist(), strict=True)):
        with _named(data, k):
            check_plausible(0.0, n_events, pileup, max_events)
    for start, block in data.pieces():
        try:
            check_counts(block, dtype)
        except ValueError:
            for k, row in enumerate(block, start):
                with _named(data, k):
                    check_counts(row, dtype)
        largest = block.reshape(len(block), -1).max(axis=1).astype(dtype)
        for k in np.flatnonzero(largest > most_counts(data.events[start : start + len(block)], max_events)).tolist():
            with _named(data, start + k, f", {_place(block[k])}"):
                check_plausible(float(largest[k]), float(data.events[start + k]), np.nan, max_events)
        if block.dtype == np.float64:
            rounding = max(rounding, float(np.abs(block - block.astype(dtype)).max()))
        digest.update(block.tobytes())
    for values in (data.events, data.pileup):
        digest.update(np.asarray(values, np.float64).tobytes())
    if not np.array_equal(data.lumisection, np.arange(1, data.size + 1)):
        digest.update(data.lumisection.astype("<i8").tobytes())
    return CheckedRun(data, digest.hexdigest(), rounding)


@contextmanager
def _named(data: RunData, k: int, place: str = "") -> Iterator[None]:
    """Turn a ValueError about the k-th lumisection into an InputError that names the file and where in it that lies."""
    try:
        yield
    except ValueError as error:
        row = f", row {k if data.rows is None else int(data.rows[k])}" if data.row_is_in_file else ""
        raise InputError(f"{data.name}{row}, run {data.run}, lumisection {data.lumisection[k]}{place}: {error}") from error


def _place(counts: np.ndarray) -> str:
    """Where the largest count of a map lies."""
    *depth, ieta, iphi = np.unravel_index(int(counts.argmax()), counts.shape)
    return f"{f'depth {depth[0] + 1}, ' if depth else ''}ieta {IETA[ieta]}, iphi {iphi + 1}"


def _import_run(writer: ArchiveWriter, run: CheckedRun, taking: Taking, known: dict[str, int]) -> Imported:
    data, size = run.data, run.data.size
    taken = Imported(data.name, data.run, size, 0, 0, 0, run.rounding, True, data.dropped, data.notes)
    if run.sha256 in known:
        return taken
    if not size:
        return replace(taken, known=False)
    next_offset = writer.archive.refresh().next_offset(IMPORT_FEED, 0) or 0
    while True:
        ledger: dict[str, str | int] = {
            "sha256": run.sha256,
            "run": data.run,
            "name": data.name,
            "rows": size,
            "offset": next_offset,
        }
        parts = _parts(writer.archive, data, taking, next_offset)
        try:
            filed = writer.append_parts(IMPORT_FEED, 0, parts, next_offset, next_offset + size + 2, ledger)
        except OffsetConflict as conflict:  # another import came first: its offsets are taken, ours come after
            if run.sha256 in writer.archive.refresh().imported():
                return taken
            next_offset = conflict.stored or 0
            newest = writer.archive.refresh()
            _check_dataset(newest, FiledDatasets(newest), run, taking)
            continue
        except ClockSetBack:
            continue
        except SourceConflict as conflict:
            raise InputError(f"run {data.run} of {data.name} is of {data.source}, and {conflict}: give --source") from conflict
        return replace(taken, rows=filed.rows, duplicates=filed.duplicates, revisions=filed.revisions, known=False)


def _parts(archive: Archive, data: RunData, taking: Taking, offset: int) -> Iterator[list[Entry]]:
    """The run's start, its lumisections and its stop, a block at a time."""
    quality = Quality.INTERPOLATED if taking.interpolated else Quality.GOOD
    yield [Control(offset, offset + 1, Kind.START, data.run, reason=data.dataset)]
    for start, block in data.pieces():
        entries: list[Entry] = []
        for k, counts in enumerate(block, start=start):
            record = Lumisection(
                run=data.run,
                lumisection=int(data.lumisection[k]),
                occupancy=counts,
                n_events=float(data.events[k]),
                pileup=float(data.pileup[k]),
                source=data.source,
            )
            entries.append(
                make_row(record, offset + 1 + k, archive.geometry, archive.dtype, quality, max_events=taking.max_events)
            )
        yield entries
    stop = offset + 1 + data.size
    yield [Control(stop, stop + 1, Kind.STOP, data.run)]
