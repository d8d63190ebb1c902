"""Importing files in the original layout: a run a file, whole or not at all, and twice is once.

`Run355456_Dataset_x.npy` of shape (n, 64, 72) holds a run; row k is lumisection k + 1. Beside it, or among the files given,
`Run355456_events.npy` and `Run355456_pileup.npy` of shape (n,) say what is known of each lumisection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import RUN_FILE, SIDECAR_FILE, Lumisection, check_counts, check_numbers
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import IMPORT_FEED, Kind, Quality
from dqmstream.storage.log import ArchiveWriter, Control, Entry, OffsetConflict, make_row

ROWS_AT_ONCE = 512
NOT_DATA = ("truth.json",)
"""What `simulate` leaves beside the files, so that `simulated/*` can be given as it is."""


@dataclass(frozen=True, eq=False)
class RunFile:
    """A file that was found good. counts: a memory map, shape (n, 64, 72) or (n, depth, 64, 72)."""

    path: Path
    run: int
    counts: np.ndarray
    events: np.ndarray
    pileup: np.ndarray
    sha256: str
    rounding: float


@dataclass(frozen=True)
class Imported:
    """What came of a file. known: it had been imported before, and nothing changed.

    rounding: the largest difference, in counts, between the file's values and the stored ones.
    """

    name: str
    run: int
    lumisections: int
    rows: int
    duplicates: int
    revisions: int
    rounding: float
    known: bool


def import_files(
    paths: Sequence[Path],
    archive: Callable[[], Archive],
    *,
    dtype: np.dtype,
    depths: int,
    run: int | None = None,
    interpolated: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Imported]:
    """Import files, or folders of them. All are checked before the archive is made or anything is written.

    archive: opens or makes the archive, once every file was found good. run: number of the only file, where its name has
    none. interpolated: mark every row as interpolated, as in the two published files. progress: called with "check" or
    "import", files done and files in all. Raises InputError for the first file that cannot be used.
    """
    data, sidecars = _sort_files(paths)
    if run is not None and len(data) != 1:
        raise InputError(f"--run names the run of one file, and {len(data)} are given")
    files = []
    for i, path in enumerate(data):
        progress("check", i, len(data))
        files.append(_check_file(path, _run_number(path, run), sidecars, interpolated, dtype, depths))
    progress("check", len(data), len(data))
    writer = ArchiveWriter(archive())
    known = writer.archive.imported()
    done = []
    for i, file in enumerate(files):
        progress("import", i, len(files))
        done.append(_import_file(writer, file, interpolated, known))
        known[file.sha256] = file.run
    progress("import", len(files), len(files))
    return done


def read_run_file(path: Path, *, interpolated: bool = False) -> RunFile:
    """One file in the original layout, with the sidecars beside it, checked as an import checks it; any number of depths.

    Raises InputError if it cannot be used, or its name does not tell the run.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    match = RUN_FILE.match(path.name)
    if match is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy")
    return _check_file(path, _run_number(path, int(match["run"])), {}, interpolated, np.dtype("float32"), None)


def _sort_files(paths: Sequence[Path]) -> tuple[list[Path], dict[tuple[int, str], Path]]:
    """Data files in the order given, and the sidecars among them by (run, "events" | "pileup")."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.npy"))
            if not inside:
                raise InputError(f"{path} holds no .npy file")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist")
    data: list[Path] = []
    sidecars: dict[tuple[int, str], Path] = {}
    for path in found:
        if match := SIDECAR_FILE.match(path.name):
            sidecars[(int(match["run"]), match["what"])] = path
        elif path.suffix == ".npy":
            data.append(path)
        elif path.name not in NOT_DATA:
            raise InputError(f"{path} is no .npy file: `import` takes NumPy files of shape (lumisections, 64, 72)")
    if not data:
        raise InputError("no file with occupancy maps among those given, only sidecars")
    return data, sidecars


def _run_number(path: Path, run: int | None) -> int:
    match = RUN_FILE.match(path.name)
    number = run if run is not None else int(match["run"]) if match else None
    if number is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy or give --run")
    try:
        check_numbers(number)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return number


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a NumPy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays (.npz), and only single arrays (.npy) are taken")
    return array


def _check_file(
    path: Path, run: int, sidecars: dict[tuple[int, str], Path], interpolated: bool, dtype: np.dtype, depths: int | None
) -> RunFile:
    """depths: of the archive; None where any number will do."""
    counts = _load(path)
    if counts.ndim not in (3, 4) or counts.shape[-2:] != (64, 72) or len(counts) == 0:
        raise InputError(
            f"{path} has shape {counts.shape}, and must have (lumisections, 64, 72) or (lumisections, depths, 64, 72)"
        )
    file_depths = 1 if counts.ndim == 3 else counts.shape[1]
    if depths is not None and file_depths != depths:
        raise InputError(f"{path} holds {file_depths} depth(s), the archive {depths}")
    digest = hashlib.sha256(f"run {run} interpolated {interpolated} {counts.dtype.str} {counts.shape}".encode())
    rounding = 0.0
    for start in range(0, len(counts), ROWS_AT_ONCE):
        block = np.ascontiguousarray(counts[start : start + ROWS_AT_ONCE])
        try:
            check_counts(block, dtype)
        except ValueError:
            _name_bad_row(path, block, start, dtype)
        if block.dtype == np.float64:
            rounding = max(rounding, float(np.abs(block - block.astype(dtype)).max()))
        digest.update(block.tobytes())
    scalars = {}
    for what in ("events", "pileup"):
        beside = path.with_name(f"Run{run}_{what}.npy")
        sidecar = sidecars.get((run, what)) or (beside if beside.exists() else None)
        scalars[what] = _check_sidecar(sidecar, len(counts)) if sidecar else np.full(len(counts), np.nan)
        digest.update(scalars[what].tobytes())
    return RunFile(path, run, counts, scalars["events"], scalars["pileup"], digest.hexdigest(), rounding)


def _name_bad_row(path: Path, block: np.ndarray, start: int, dtype: np.dtype) -> None:
    """Raise InputError for the first row of a block that holds a bad one."""
    for k, row in enumerate(block):
        try:
            check_counts(row, dtype)
        except ValueError as error:
            raise InputError(f"{path}, lumisection {start + k + 1}: {error}") from error


def _check_sidecar(path: Path, rows: int) -> np.ndarray:
    values = _load(path)
    if values.shape != (rows,) or values.dtype.kind not in "iuf":
        raise InputError(f"{path} has shape {values.shape} and dtype {values.dtype}, its run has {rows} lumisections")
    values = values.astype(np.float64)
    if not np.all(np.isnan(values) | ((values >= 0) & np.isfinite(values))):
        raise InputError(f"{path} holds a negative or infinite value")
    return values


def _import_file(writer: ArchiveWriter, file: RunFile, interpolated: bool, known: dict[str, int]) -> Imported:
    lumisections = len(file.counts)
    if file.sha256 in known:
        return Imported(file.path.name, file.run, lumisections, 0, 0, 0, file.rounding, known=True)
    archive = writer.archive
    quality = Quality.INTERPOLATED if interpolated else Quality.GOOD
    next_offset = archive.refresh().next_offset(IMPORT_FEED, 0) or 0
    while True:
        entries: list[Entry] = [Control(next_offset, next_offset + 1, Kind.START, file.run)]
        for k in range(lumisections):
            record = Lumisection(
                run=file.run,
                lumisection=k + 1,
                occupancy=np.asarray(file.counts[k]),
                n_events=float(file.events[k]),
                pileup=float(file.pileup[k]),
            )
            entries.append(make_row(record, next_offset + 1 + k, archive.geometry, archive.dtype, quality))
        stop = next_offset + 1 + lumisections
        entries.append(Control(stop, stop + 1, Kind.STOP, file.run))
        ledger: dict[str, str | int] = {
            "sha256": file.sha256,
            "run": file.run,
            "name": file.path.name,
            "rows": lumisections,
            "offset": next_offset,
        }
        try:
            filed = writer.append(IMPORT_FEED, 0, entries, next_offset, stop + 1, ledger)
        except OffsetConflict as conflict:  # another import came first: its offsets are taken, ours come after
            if file.sha256 in archive.refresh().imported():
                return Imported(file.path.name, file.run, lumisections, 0, 0, 0, file.rounding, known=True)
            next_offset = conflict.stored or 0
            continue
        return Imported(
            file.path.name, file.run, lumisections, filed.rows, filed.duplicates, filed.revisions, file.rounding, False
        )
