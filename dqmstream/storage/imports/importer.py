"""Importing lumisections: a run is filed whole or not at all, and importing it twice changes nothing.

Every run is read and checked before the archive is made or anything is written. Each run is then filed in one commit, with a
few hundred maps in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import Lumisection
from dqmstream.storage.archive import Archive
from dqmstream.storage.clock import ClockSetBack
from dqmstream.storage.entries import Control, Entry, Row, make_row
from dqmstream.storage.imports.checking import CheckedRun, check_each_run_once, check_run
from dqmstream.storage.imports.datasets import FiledDatasets, check_one_import
from dqmstream.storage.imports.reading import Progress, check_sources, read_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.imports.run_file import Dropped, RunFile
from dqmstream.storage.labels.luminosity import LuminosityTable
from dqmstream.storage.layout import IMPORT_FEED, ControlKind, Quality
from dqmstream.storage.scale import Scale
from dqmstream.storage.status import run_scales
from dqmstream.storage.writer import ArchiveWriter, OffsetConflict, SourceConflict


@dataclass(frozen=True)
class Imported:
    """What became of a run.

    lumisections: of the files, without dropped ones. rows, duplicates, revisions: as filed. rounding: largest difference, in
    counts, between the file's values and the stored ones. known: the run was imported before, so nothing was written.
    dropped: what was left out, and why. notes: for the user. scale: of the values in the file (`storage.scale`). off_whole: how
    far shares times events were from whole counts at most; None where the file holds no shares, or is interpolated.
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
    scale: str = Scale.COUNTS.value
    off_whole: float | None = None


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
    """Import files, or folders of them, as `import_runs` does, with no conditions or labels."""
    return import_runs(paths, archive, ImportRules(dtype, depths, run, interpolated), progress)[0]


def import_runs(
    paths: Sequence[Path],
    archive: Callable[[], Archive],
    rules: ImportRules,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[list[Imported], list[LuminosityTable]]:
    """Import the runs of files, or of folders of them. Returns what became of each, and the luminosity tables beside them.

    archive: opens or makes the archive; called once every file was found good. progress: called with "read", "check" or
    "import", done and total. Raises InputError for the first file that cannot be used, with nothing written.
    """
    runs = read_runs(paths, rules, progress)
    check_one_import(runs)
    check_sources(runs, rules)
    checked = []
    for i, data in enumerate(runs):
        progress("check", i, len(runs))
        checked.append(check_run(data, rules.interpolated, rules.dtype, rules.depths or 1, rules.max_events))
    progress("check", len(runs), len(runs))
    check_each_run_once(checked)
    writer = ArchiveWriter(archive())
    known = writer.archive.imported()
    filed = FiledDatasets(writer.archive)
    for one in checked:
        _check_dataset(writer.archive, filed, one, rules)
    scales = run_scales(writer.archive)
    done = []
    for i, one in enumerate(checked):
        progress("import", i, len(checked))
        note = _other_scale(one.data, scales)
        filed_run = _import_run(writer, one, rules, known)
        done.append(replace(filed_run, notes=(*filed_run.notes, *note)))
        known[one.sha256] = one.data.run
        scales[one.data.run] = one.data.scale
    progress("import", len(checked), len(checked))
    return done, [data.luminosity for data in runs if data.luminosity]


def _other_scale(data: RunFile, scales: Mapping[int, Scale]) -> tuple[str, ...]:
    """A note where the run's values are of another scale than those of the other runs. scales: by run."""
    stored = {run: Scale.COUNTS if scale is Scale.SHARES else scale for run, scale in {**scales, data.run: data.scale}.items()}
    own = stored[data.run]
    others = [run for run, scale in stored.items() if scale != own]
    if not others:
        return ()
    return (
        f"its values are of another scale ({own.value}) than those of {len(others)} runs of the archive, as run {others[0]} "
        f"({stored[others[0]].value}): ratios of channels compare, errors and the number of events do not",
    )


def _check_dataset(archive: Archive, filed: FiledDatasets, run: CheckedRun, rules: ImportRules) -> None:
    """Raise InputError where the archive holds this run of another data set."""
    data = run.data

    def is_filed() -> bool:
        """Whether the archive has lumisections of the run, and all of them with these contents."""
        contents, found = archive.index.contents(data.run), False
        for entries in _parts(archive, data, rules, 0):
            for entry in entries:
                if isinstance(entry, Row) and (stored := contents.get(entry.lumisection)):
                    found = True
                    if entry.content not in stored:
                        return False
        return found

    filed.check(data, is_filed)


def _import_run(writer: ArchiveWriter, run: CheckedRun, rules: ImportRules, known: Container[str]) -> Imported:
    """File a run in one commit. known: SHA-256 of the runs that were imported before."""
    data, size = run.data, run.data.size
    imported = Imported(
        data.name, data.run, size, 0, 0, 0, run.rounding, True, data.dropped, data.notes, data.scale.value, data.off_whole
    )
    if run.sha256 in known:
        return imported
    if not size:
        return replace(imported, known=False)
    next_offset = writer.archive.refresh().next_offset(IMPORT_FEED, 0) or 0
    while True:
        ledger: dict[str, str | int] = {
            "sha256": run.sha256,
            "run": data.run,
            "name": data.name,
            "rows": size,
            "offset": next_offset,
        }
        parts = _parts(writer.archive, data, rules, next_offset)
        try:
            filed = writer.append_parts(IMPORT_FEED, 0, parts, next_offset, next_offset + size + 2, ledger)
        except OffsetConflict as conflict:  # another import filed first
            if run.sha256 in writer.archive.refresh().imported():
                return imported
            next_offset = conflict.stored or 0
            newest = writer.archive.refresh()
            _check_dataset(newest, FiledDatasets(newest), run, rules)
            continue
        except ClockSetBack:
            continue
        except SourceConflict as conflict:
            raise InputError(f"run {data.run} of {data.name} is of {data.source}, and {conflict}: give --source") from conflict
        return replace(imported, rows=filed.rows, duplicates=filed.duplicates, revisions=filed.revisions, known=False)


def _parts(archive: Archive, data: RunFile, rules: ImportRules, offset: int) -> Iterator[list[Entry]]:
    """Entries to file: the run's start, its lumisections piece by piece, its stop."""
    quality = Quality.INTERPOLATED if rules.interpolated else Quality.GOOD
    if data.times is not None:
        quality |= Quality.FROM_SHARES
    yield [Control(offset, offset + 1, ControlKind.START, data.run, reason=data.dataset)]
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
                make_row(record, offset + 1 + k, archive.geometry, archive.dtype, quality, max_events=rules.max_events)
            )
        yield entries
    stop = offset + 1 + data.size
    yield [Control(stop, stop + 1, ControlKind.STOP, data.run)]
