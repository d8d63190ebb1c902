"""The maps of a run, read from the archive when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from dqmstream.errors import ArchiveError
from dqmstream.storage import layout
from dqmstream.storage.columns import array, read_rows, subgroup
from dqmstream.storage.failures import telling
from dqmstream.storage.row_index import LogKey

AXES = ("lumisection", "depth", "ieta", "iphi")


def lazy_maps(path: Path, root: zarr.Group, logs: list[LogKey], newest: np.ndarray) -> xr.Variable:
    """The maps of lumisections as a variable that reads them at the first use, and only those that are used.

    path: of the archive, for errors. logs, newest: as `RowIndex.newest` gives them, with at least one lumisection. What was
    read whole is kept in memory, as xarray does with a file that it opened. Reading raises ArchiveError.
    """
    lazy = indexing.LazilyIndexedArray(_Maps(path, root, logs, newest))
    return xr.Variable(AXES, indexing.MemoryCachedArray(lazy), {"units": "count"})


class _Maps(BackendArray):
    """Rows of the column `occupancy` of one or several logs, as xarray reads them."""

    def __init__(self, path: Path, root: zarr.Group, logs: list[LogKey], newest: np.ndarray) -> None:
        self._path = path
        self._groups = [subgroup(root, layout.feed_path(*log)) for log in logs]
        self._log, self._row = newest[:, 2], newest[:, 3]
        column = array(self._groups[int(self._log[0])], "occupancy")
        self.shape = (len(newest), *column.shape[1:])
        self.dtype = np.dtype(column.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """key: for each axis a number, a slice or an array of places, which apply one axis after another."""
        chosen = np.arange(self.shape[0])[key[0]]
        found = self._rows(np.atleast_1d(chosen))
        for axis in range(len(self.shape) - 1, 0, -1):  # from the last, since a number takes its axis away
            found = found[(slice(None),) * axis + (key[axis],)]
        return found if np.ndim(chosen) else found[0]

    def _rows(self, places: np.ndarray) -> np.ndarray:
        """Maps of the lumisections at these places, in their order."""
        read = np.empty((len(places), *self.shape[1:]), self.dtype)
        try:
            with telling(self._path, "cannot be read"):
                for log in np.unique(self._log[places]):
                    here = np.flatnonzero(self._log[places] == log)
                    read[here] = read_rows(self._groups[int(log)], ["occupancy"], self._row[places[here]])["occupancy"]
        except FileNotFoundError as error:  # zarr's, for a group that the store does not have any more
            raise ArchiveError(
                f"{self._path}: the snapshot of this view has expired before its maps were read: open the archive again"
            ) from error
        return read
