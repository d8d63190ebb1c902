"""Counts of a run from wherever they are: a file, an archive, an xarray object or a NumPy array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xarray as xr

from dqmstream.errors import InputError
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import INTERPOLATED_SCALE
from dqmstream.learners.stream.ledger import scale_of
from dqmstream.lumisection import IETA, IPHI, N_IETA, N_IPHI, utf8
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.checking import read_run_file
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.imports.scaling import in_counts
from dqmstream.storage.scale import Scale, scale_of_rows

_ROWS = 512
"""Lumisections that are read at a time."""

RunLike: TypeAlias = int | str | Path | tuple[Archive, int] | xr.Dataset | xr.DataArray | np.ndarray | RunData
"""What `compare_runs` takes for a run."""


@dataclass(frozen=True, eq=False)
class RunCounts:
    """A run as it was read.

    run: its number, None if unknown. name: for messages. counts: (n, 64, 72) or (n, depth, 64, 72), may be a memory map.
    events: (n,), nan where unknown. lumisection: numbers, (n,), ascending. scale: 25 if rows were interpolated, else 1.
    values: what they are as they came (`storage.scale`); shares of events are counts here.
    """

    run: int | None
    name: str
    counts: np.ndarray
    events: np.ndarray
    lumisection: np.ndarray
    scale: int
    values: Scale = Scale.COUNTS

    @property
    def depths(self) -> int:
        return 1 if self.counts.ndim == 3 else int(self.counts.shape[1])

    def live(self) -> np.ndarray:
        """Cells that count in at least one lumisection: bool, (depth, 64, 72)."""
        live = np.zeros(self.counts.shape[1:], dtype=bool)
        for start in range(0, len(self.counts), _ROWS):
            live |= (self.counts[start : start + _ROWS] > 0).any(axis=0)
        return live.reshape(self.depths, *live.shape[-2:])

    def of(self, live: np.ndarray) -> np.ndarray:
        """Counts of the live channels: float32, (n, live), a fifth of the file or less."""
        out = np.empty((len(self.counts), int(live.sum())), dtype=np.float32)
        for start in range(0, len(self.counts), _ROWS):
            part = np.asarray(self.counts[start : start + _ROWS])
            out[start : start + _ROWS] = part.reshape(len(part), *live.shape)[:, live]
        return out


def is_file(name: str) -> bool:
    """Whether a word names a file, and not the number of a run; a file whose name is a number counts as a file."""
    return not name.isdecimal() or Path(name).exists()


def read_run(name: str, archive: Archive | None, interpolated: bool) -> RunCounts:
    """Read a run from a file, or by its number from an archive. interpolated: rows of a file were interpolated.

    Raises InputError for a file that cannot be used, ArchiveError for a run that the archive does not hold.
    """
    if is_file(name):
        path = Path(name)
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the .npy file of one run")
        data = read_run_file(path, interpolated=interpolated).data
        return RunCounts(
            data.run, utf8(path.name), data.all_maps(), data.events, data.lumisection, _scale(interpolated), data.scale
        )
    if archive is None:
        raise InputError(f"there is no file {name}; to compare run {name} of an archive, give --archive")
    return _of_archive(archive, int(name))


def run_counts(
    given: RunLike, name: str, archive: Archive | None, n_events: np.ndarray | None, interpolated: bool
) -> RunCounts:
    """The counts of a run in any of the forms of `RunLike`.

    name: what messages call an array. archive: holds runs that are given by number. n_events: of an array or xarray object,
    (n,). interpolated: rows of a file or array were interpolated. Raises InputError if the run cannot be used.
    """
    if isinstance(given, tuple):
        archive, number = given
        return _of_archive(archive, int(number))
    if isinstance(given, int | str | Path):
        if n_events is not None:
            raise InputError(f"n_events is given for {given}: leave it out, files and archives have their own")
        return read_run(str(given), archive, interpolated)
    if isinstance(given, RunData):
        events = given.maps.n_events if n_events is None else n_events
        scale = _scale(interpolated)
        return _of_arrays(given.run, f"run {given.run}", given.maps.counts, events, given.maps.lumisection, scale)
    if isinstance(given, xr.Dataset):
        return _of_dataset(given, name, n_events, interpolated)
    if isinstance(given, xr.DataArray):
        return _of_dataset(given.to_dataset(name="occupancy"), name, n_events, interpolated)
    if isinstance(given, np.ndarray):
        lumisection = np.arange(1, len(given) + 1) if given.ndim else np.zeros(0, dtype=np.int64)
        return _of_arrays(None, name, given, n_events, lumisection, _scale(interpolated))
    raise InputError(f"{name} is a {type(given).__name__}: give a file, a run number, an xarray object or a NumPy array")


def _scale(interpolated: bool) -> int:
    return INTERPOLATED_SCALE if interpolated else 1


def _of_archive(archive: Archive, run: int) -> RunCounts:
    view = archive.run(run)
    counts, events = view["occupancy"].values, view["n_events"].values
    name = f"run {run} of {utf8(archive.path.name)}"
    values = scale_of_rows(view["quality"].values)
    return RunCounts(run, name, counts, events, view["lumisection"].values, scale_of(view), values)


def _of_dataset(data: xr.Dataset, name: str, n_events: np.ndarray | None, interpolated: bool) -> RunCounts:
    """data: as `Archive.run` gives it, of which only `occupancy` is needed."""
    if "occupancy" not in data:
        raise InputError(f"{name} has no variable occupancy: give a Dataset as archive.run(number) returns it")
    over = data["occupancy"].dims[0]
    if data["occupancy"].dims[-2:] != ("ieta", "iphi"):
        raise InputError(f"{name} has dimensions {data['occupancy'].dims}: give (lumisection, [depth,] ieta, iphi)")
    for axis, whole in (("ieta", IETA), ("iphi", IPHI)):
        if axis in data.coords and not np.array_equal(data[axis].values, whole):
            raise InputError(f"{name} does not hold every {axis} in its order: give whole maps")
    numbers = data[over].values if over in data.coords else np.arange(1, data.sizes[over] + 1)
    if n_events is None and "n_events" in data:
        n_events = data["n_events"].values
    scale = scale_of(data) if "quality" in data else _scale(interpolated)
    run = int(data.attrs["run"]) if "run" in data.attrs else None
    return _of_arrays(run, name if run is None else f"run {run}", data["occupancy"].values, n_events, numbers, scale)


def _of_arrays(
    run: int | None, name: str, counts: np.ndarray, n_events: np.ndarray | None, lumisection: np.ndarray, scale: int
) -> RunCounts:
    """Check arrays that no reader has checked, put the lumisections in order, and multiply shares of events back."""
    if counts.ndim not in (3, 4) or counts.shape[-2:] != (N_IETA, N_IPHI) or not len(counts):
        raise InputError(f"{name} has shape {counts.shape}: give counts of shape (n, 64, 72) or (n, depth, 64, 72)")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError(f"{name} holds negative or non-finite counts: give counts of 0 or more")
    events = np.full(len(counts), np.nan) if n_events is None else np.asarray(n_events, dtype=np.float64)
    if events.shape != (len(counts),):
        raise InputError(
            f"{name} has {len(counts)} lumisections and n_events of shape {events.shape}: give one number for each"
        )
    order = np.argsort(lumisection, kind="stable")
    if len(np.unique(lumisection)) < len(lumisection):
        raise InputError(f"{name} holds a lumisection twice: give each number once")
    ordered = counts if np.array_equal(order, np.arange(len(order))) else counts[order]
    unknown_size = np.full(len(counts), np.nan)
    data = RunFile(name, run or 0, ordered, np.arange(1, len(counts) + 1), events[order], unknown_size, row_is_in_file=False)
    data = in_counts(data, scale > 1)
    return RunCounts(run, name, data.all_maps(), data.events, np.asarray(lumisection)[order], scale, data.scale)
