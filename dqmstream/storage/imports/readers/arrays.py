"""The original layout: `Run355456_Dataset_x.npy` holds a run, and row k of it is lumisection k + 1.

Shape (n, 64, 72) or (n, depth, 64, 72), or wider as (n, 84, 72); `imports.binning` says which rows of ieta these are. Beside
the file, or among the files given, `Run355456_events.npy` and `Run355456_pileup.npy` of shape (n,) hold events and pileup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IPHI, RUN_FILE, SIDECAR_FILE, check_numbers
from dqmstream.storage.imports.binning import UNSHIFTED, is_width
from dqmstream.storage.imports.readers.registry import Reader, ReadRequest, reader
from dqmstream.storage.imports.run_file import NO_LUMISECTION, RunFile, unknown
from dqmstream.storage.imports.window import find_binning

TRUTH_FILE = "truth.json"
"""What `simulate` writes beside the maps, so that `simulated/*` can be given as it is."""

UNREADABLE = (ValueError, TypeError, OSError, EOFError, OverflowError, RecursionError, MemoryError, SyntaxError, TokenError)
"""What NumPy raises for a header that is damaged, claims an impossible size, or nests too deep to be parsed."""


@reader("arrays")
class Arrays(Reader):
    """`Run<number>_Dataset_<name>.npy`, and its sidecars."""

    needs_run = True

    def takes(self, path: Path) -> bool:
        return path.suffix.lower() == ".npy"

    def is_companion(self, path: Path) -> bool:
        return SIDECAR_FILE.match(path.name) is not None or path.name == TRUTH_FILE

    def why_left_out(self, path: Path, is_named: bool) -> str:
        return "" if is_named or RUN_FILE.match(path.name) else "left out: its name tells no run"

    def read(self, paths: Sequence[Path], request: ReadRequest) -> list[RunFile]:
        matches = ((SIDECAR_FILE.match(path.name), path) for path in request.companions)
        sidecars = {(int(match["run"]), match["what"]): path for match, path in matches if match}
        return [read_array(path, request.run, sidecars, request.crop) for path in paths]


def read_array(
    path: Path, run: int | None = None, sidecars: Mapping[tuple[int, str], Path] | None = None, crop: bool = False
) -> RunFile:
    """The run of a .npy file.

    run: its number, where the name does not tell it. sidecars: files by run and "events" or "pileup", used in place of those
    beside the file. crop: leave out counts beyond |ieta| 32. Raises InputError for a file that cannot be used.
    """
    number = run_number(path, run)
    counts = load_array(path)
    if counts.ndim not in (3, 4) or not is_width(counts.shape[-2]) or counts.shape[-1] != N_IPHI or len(counts) == 0:
        raise InputError(
            f"{path} has shape {counts.shape}, and must have (lumisections, 64, 72) or (lumisections, depths, 64, 72), "
            "or more than 64 with those in the middle"
        )
    if counts.dtype.kind not in "iuf":
        raise InputError(f"{path}: occupancy of dtype {counts.dtype} is not a real number")
    binning, notes = find_binning(counts, path, crop)
    size, begins_empty = len(counts), not np.any(counts[0])
    scalars = {}
    for what in ("events", "pileup"):
        beside = path.with_name(f"Run{number}_{what}.npy")
        sidecar = (sidecars or {}).get((number, what)) or (beside if beside.exists() else None)
        scalars[what] = _read_sidecar(sidecar, size) if sidecar else unknown(size)
    is_converted = binning is UNSHIFTED and begins_empty  # as the converter wrote it: row k is lumisection k
    if begins_empty and size > 1 and not is_converted:
        notes = (*notes, "row 0 is empty and was taken for lumisection 1; leave it out if row k is lumisection k")
    skip = int(is_converted)
    return RunFile(
        path.name,
        number,
        counts,
        np.arange(1, size + 1 - skip),
        scalars["events"][skip:],
        scalars["pileup"][skip:],
        dropped=(NO_LUMISECTION,) if is_converted else (),
        notes=notes,
        rows=np.arange(1, size) if is_converted else None,
        binning=binning,
        dataset=match["name"] if (match := RUN_FILE.match(path.name)) else "",
    )


def run_number(path: Path, run: int | None) -> int:
    """The run that is given, otherwise that of the file's name. Raises InputError if there is neither."""
    match = RUN_FILE.match(path.name)
    number = run if run is not None else int(match["run"]) if match else None
    if number is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy or give --run")
    return checked_number(path, number)


def checked_number(path: Path, number: int) -> int:
    """The number of a run. Raises InputError for one that no CMS run can have."""
    try:
        check_numbers(number)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return number


def load_array(path: Path) -> np.ndarray:
    """A memory map of a .npy file. Raises InputError for any other file, and for Python objects, which need a pickle."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
        array = None if is_zip else np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        hint = (
            ": it holds Python objects, which are never unpickled; save it as numbers (a structured array, or a .csv)"
            if "Python objects" in str(error) or "allow_pickle" in str(error)
            else f": {str(error) or type(error).__name__}"
        )
        raise InputError(f"{path} cannot be read as a NumPy array{hint}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays (.npz), and only single arrays (.npy) are taken")
    return array


def _read_sidecar(path: Path, rows: int) -> np.ndarray:
    """Values of a sidecar, float64, (rows,), nan where unknown. Raises InputError for what cannot be used."""
    values = load_array(path)
    if values.shape != (rows,) or values.dtype.kind not in "iuf":
        raise InputError(f"{path} has shape {values.shape} and dtype {values.dtype}, its run has {rows} lumisections")
    values = values.astype(np.float64)
    if not np.all(np.isnan(values) | ((values >= 0) & np.isfinite(values))):
        raise InputError(f"{path} holds a negative or infinite value")
    return values
