"""The original layout: `Run355456_Dataset_x.npy` holds a run, and row k of it is lumisection k + 1.

Shape (n, 64, 72) or (n, depth, 64, 72), or wider as (n, 84, 72); which rows of ieta are meant, `places` tells. Beside it, or
among the files given, `Run355456_events.npy` and `Run355456_pileup.npy` of shape (n,) say what is known of each lumisection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IPHI, RUN_FILE, check_numbers
from dqmstream.storage.imports.places import UNSHIFTED, is_width
from dqmstream.storage.imports.run_data import NO_LUMISECTION, RunData, find_places, unknown

UNREADABLE = (ValueError, TypeError, OSError, EOFError, OverflowError, RecursionError, MemoryError, SyntaxError, TokenError)
"""What NumPy raises for headers that are damaged, claim sizes that no file has, or nest too deep to be parsed."""

Sidecars = Mapping[tuple[int, str], Path]
"""Files by (run, "events" | "pileup")."""


def read_array(path: Path, run: int | None, sidecars: Sidecars, crop: bool) -> RunData:
    """A run of a .npy file. run: its number, where the name does not tell it. Raises InputError for what cannot be used."""
    number = run_number(path, run)
    counts = load_array(path)
    if counts.ndim not in (3, 4) or not is_width(counts.shape[-2]) or counts.shape[-1] != N_IPHI or len(counts) == 0:
        raise InputError(
            f"{path} has shape {counts.shape}, and must have (lumisections, 64, 72) or (lumisections, depths, 64, 72), "
            "or more than 64 with those in the middle"
        )
    if counts.dtype.kind not in "iuf":
        raise InputError(f"{path}: occupancy of dtype {counts.dtype} is not a real number")
    places, notes = find_places(counts, path, crop)
    size, begins_empty = len(counts), not np.any(counts[0])
    scalars = {}
    for what in ("events", "pileup"):
        beside = path.with_name(f"Run{number}_{what}.npy")
        sidecar = sidecars.get((number, what)) or (beside if beside.exists() else None)
        scalars[what] = _check_sidecar(sidecar, size) if sidecar else unknown(size)
    is_converted = places is UNSHIFTED and begins_empty  # as the group's converter wrote it: row k is lumisection k
    if begins_empty and size > 1 and not is_converted:
        notes = (*notes, "row 0 is empty and was taken for lumisection 1; leave it out if row k is lumisection k")
    skip = int(is_converted)
    return RunData(
        path.name,
        number,
        counts,
        np.arange(1, size + 1 - skip),
        scalars["events"][skip:],
        scalars["pileup"][skip:],
        dropped=(NO_LUMISECTION,) if is_converted else (),
        notes=notes,
        rows=np.arange(1, size) if is_converted else None,
        places=places,
        dataset=match["name"] if (match := RUN_FILE.match(path.name)) else "",
    )


def run_number(path: Path, run: int | None) -> int:
    """The run that is given, or else that of the file's name."""
    match = RUN_FILE.match(path.name)
    number = run if run is not None else int(match["run"]) if match else None
    if number is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy or give --run")
    return checked_number(path, number)


def checked_number(path: Path, number: int) -> int:
    """The number, or InputError where CMS can have given no run such a one."""
    try:
        check_numbers(number)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return number


def load_array(path: Path) -> np.ndarray:
    """A memory map of a .npy file. Raises InputError for what is none, and for objects, which only a pickle could hold."""
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


def _check_sidecar(path: Path, rows: int) -> np.ndarray:
    values = load_array(path)
    if values.shape != (rows,) or values.dtype.kind not in "iuf":
        raise InputError(f"{path} has shape {values.shape} and dtype {values.dtype}, its run has {rows} lumisections")
    values = values.astype(np.float64)
    if not np.all(np.isnan(values) | ((values >= 0) & np.isfinite(values))):
        raise InputError(f"{path} holds a negative or infinite value")
    return values
