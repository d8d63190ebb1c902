"""Checks of runs before anything is written: each map and value is one that an archive can hold and a lumisection can have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import IETA, MAX_EVENTS, RUN_FILE, check_counts, check_plausible, most_counts
from dqmstream.storage.imports.readers.arrays import read_array
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.imports.scaling import in_counts


@dataclass(frozen=True, eq=False)
class CheckedRun:
    """A run whose maps and values were all found good.

    sha256: of run number, maps and values. rounding: largest difference, in counts, between them and the archive's dtype.
    """

    data: RunFile
    sha256: str
    rounding: float


def read_run_file(path: Path, *, interpolated: bool = False) -> CheckedRun:
    """The run of a file in the original layout, with its sidecars, checked as an import checks it; any number of depths.

    Raises InputError if it cannot be used, or its name does not tell the run.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if RUN_FILE.match(path.name) is None:
        raise InputError(f"{path}: the name does not tell the run; name it Run<number>_Dataset_<name>.npy")
    return check_run(in_counts(read_array(path), interpolated), interpolated, np.dtype("float32"), None)


def check_run(
    data: RunFile, interpolated: bool, dtype: np.dtype, depths: int | None, max_events: float = MAX_EVENTS
) -> CheckedRun:
    """Read a run once, and check every map and value.

    dtype, depths: of the archive; depths None: any. Raises InputError, with file, row and reason, for what an archive cannot
    hold or a lumisection cannot have.
    """
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


def check_each_run_once(checked: Sequence[CheckedRun]) -> None:
    """Raise InputError where two files hold different contents of one run: nothing tells which is the revision."""
    first: dict[int, CheckedRun] = {}
    for one in checked:
        other = first.setdefault(one.data.run, one)
        if one.sha256 != other.sha256:
            raise InputError(
                f"{other.data.name} and {one.data.name} are both of run {one.data.run}, with different contents: give one of "
                "them (a newer file that is imported later is a revision)"
            )


@contextmanager
def _named(data: RunFile, k: int, place: str = "") -> Iterator[None]:
    """Turn a ValueError about the k-th lumisection into an InputError that names the file and the row."""
    try:
        yield
    except ValueError as error:
        row = f", row {k if data.rows is None else int(data.rows[k])}" if data.row_is_in_file else ""
        raise InputError(f"{data.name}{row}, run {data.run}, lumisection {data.lumisection[k]}{place}: {error}") from error


def _place(counts: np.ndarray) -> str:
    """Depth, ieta and iphi of a map's largest count, in words."""
    *depth, ieta, iphi = np.unravel_index(int(counts.argmax()), counts.shape)
    return f"{f'depth {depth[0] + 1}, ' if depth else ''}ieta {IETA[ieta]}, iphi {iphi + 1}"
