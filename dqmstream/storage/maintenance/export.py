"""Export to plain Zarr v3, which any program opens by its path: one table with the newest revision of each lumisection.

    occupancy (row, depth, ieta, iphi); run lumisection time n_events pileup content quality produced committed (row,)
    depth, ieta, iphi: coordinates
    attributes: archive_id, snapshot, source, layout_version

Rows are sorted by run, then lumisection.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from dqmstream.errors import InputError
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import array
from dqmstream.storage.locks import empty_folder, exclusive, sync_filesystem

COLUMNS = tuple(name for name in layout.ROW_COLUMNS if name != "offset")


def export(
    archive: Archive,
    path: Path | str,
    runs: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write these runs, by default all, to a new folder at path, whole or not at all. Returns the number of rows.

    One run at a time is in memory. progress: rows written, rows in all. Raises InputError if path exists or cannot be written,
    and for a run that the archive does not hold.
    """
    path = Path(path)
    sizes = {summary.run: summary.lumisections for summary in archive.runs()}
    chosen = sorted(set(sizes if runs is None else runs))
    if unknown := [run for run in chosen if run not in sizes]:
        raise InputError(f"{archive.path} holds no lumisection of run {unknown[0]}")
    if not chosen:
        raise InputError(f"{archive.path} holds no run: import or consume some first")
    partial = path.with_name(f".{path.name}.partial")
    try:
        _refuse_existing(path)
        partial.mkdir(parents=True, exist_ok=True)
        with exclusive(partial):
            try:
                _refuse_existing(path)
                empty_folder(partial)  # remains of an export that was killed
                rows = _write(archive, partial, {run: sizes[run] for run in chosen}, progress)
                sync_filesystem(partial)
                partial.rename(path)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    sync_filesystem(path)
    return rows


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already: give the path of a new folder")


def _write(archive: Archive, folder: Path, sizes: dict[int, int], progress: Callable[[int, int], None]) -> int:
    total = sum(sizes.values())
    table = zarr.open_group(folder, mode="w", zarr_format=3)
    table.attrs.update(
        {
            "archive_id": archive.archive_id,
            "snapshot": archive.snapshot,
            "source": archive.source,
            "layout_version": layout.LAYOUT_VERSION,
        }
    )
    done = 0
    for run in sizes:
        view = archive.run(run)
        if not done:
            _make_arrays(table, archive, view, total)
        following = done + view.sizes["lumisection"]
        for name in ("occupancy", *COLUMNS):
            array(table, name)[done:following] = _values(view, name, run)
        done = following
        progress(done, total)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")  # xarray writes it too, and reads it by default
        zarr.consolidate_metadata(table.store)
    return done


def _make_arrays(table: zarr.Group, archive: Archive, view: xr.Dataset, total: int) -> None:
    """Make all arrays at their full length, without values, and write the coordinates."""
    for name in ("depth", "ieta", "iphi"):
        coordinate = table.create_array(name, shape=view[name].shape, dtype="int64", dimension_names=(name,))
        coordinate[:] = view[name].values
    table.create_array(
        "occupancy",
        shape=(total, *archive.geometry.shape),
        chunks=(layout.ROWS_PER_CHUNK, *archive.geometry.shape),
        dtype=archive.dtype.name,
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle"),
        dimension_names=("row", "depth", "ieta", "iphi"),
        attributes={"units": "count", "long_name": "events with charge above the cut"},
    )
    for name in COLUMNS:
        layout.make_column(table, name, "row", layout.ROW_COLUMNS, length=total)


def _values(view: xr.Dataset, name: str, run: int) -> np.ndarray:
    """Stored values of a column for the run's rows."""
    if name == "run":
        return np.full(view.sizes["lumisection"], run)
    values = view[name].values
    return values.view("int64") if name in layout.TIMES else values
