"""Files of labelled images: electron/photon HDF5, quark/gluon Parquet, and runs of occupancy maps as images.

Each is an `ImageFile`, which reads only the rows that are asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import N_IETA, N_IPHI, RUN_FILE
from dqmstream.storage.images.hdf5 import open_data_sets
from dqmstream.storage.imports.checking import read_run_file
from dqmstream.storage.imports.nested_lists import Ragged, batches, check_lists, dense, open_parquet
from dqmstream.storage.imports.run_file import RunFile

BLOCK_BYTES = 4 << 20
"""Most bytes of images in memory while a file is read piece by piece."""

CONTIGUOUS_ROWS = 8
"""Rows that are read together from HDF5 without chunks."""

MAX_IMAGE_VALUES = 1 << 22
"""Most values of an image, all channels together: 4 million."""

HDF5_SUFFIXES = (".hdf5", ".h5")
JET_COLUMN = "X_jets"
_NAMED = re.compile(r"Single(Electron|Photon)Pt", re.IGNORECASE)


class ImageFile(Protocol):
    """A file of labelled images.

    what: "y" if labels are the file's own, "run" if they are run numbers. size: (n, C, H, W). labels: int64, (n,).
    names: of labels, as far as the file's name tells them. group: int64, (n,); rows that belong together have the same or
    neighbouring numbers. columns: further numbers of each row, float64, (n,).
    """

    @property
    def path(self) -> Path: ...
    @property
    def what(self) -> str: ...
    @property
    def size(self) -> tuple[int, int, int, int]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def names(self) -> Mapping[int, str]: ...
    @property
    def group(self) -> np.ndarray: ...
    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images of these ascending rows: float32, (len(rows), C, H, W). Raises InputError for damage, NaN and infinity."""


def open_image_file(path: Path) -> ImageFile:
    """The file at path, by its suffix and what is in it. Raises InputError, with the reason, for what holds no images."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.suffix.lower() in HDF5_SUFFIXES:
        return open_hdf5(path)
    if path.suffix.lower() == ".parquet":
        return open_jets(path)
    if RUN_FILE.match(path.name):
        return open_run(path)
    raise InputError(
        f"{path} holds no known images: give .hdf5 (X, y), .parquet ({JET_COLUMN}, y) or Run<number>_Dataset_<name>.npy"
    )


def is_image_file(path: Path) -> bool:
    """Whether `import` treats the file as one of images, not of lumisections."""
    if path.suffix.lower() in HDF5_SUFFIXES:
        return True
    return path.suffix.lower() == ".parquet" and JET_COLUMN in open_parquet(path).schema_arrow.names


def blocks(file: ImageFile, first: int = 0, chunk: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, images) of the whole file, piece by piece.

    first, chunk: row at which the file will begin in an archive, and rows in each of its chunks; pieces end where chunks do.
    """
    for start, stop in cut(file, file.size[0], first, chunk):
        yield start, file.read(np.arange(start, stop))


def cut(file: ImageFile, size: int, first: int = 0, chunk: int = 1) -> Iterator[tuple[int, int]]:
    """[start, stop) of pieces of the file's first `size` images. first, chunk: as in `blocks`."""
    rows = max(1, BLOCK_BYTES // (4 * int(np.prod(file.size[1:]))))
    rows = max(rows // chunk, 1) * chunk
    start = 0
    while start < size:
        stop = min(start + rows - (first + start) % chunk, size)
        yield start, stop
        start = stop


class Contents:
    """SHA-256 of shape, images, labels and columns, which is the same for the same contents in any file."""

    def __init__(self, size: tuple[int, int, int, int]) -> None:
        self._digest = hashlib.sha256(f"images {size}".encode())

    def add(self, images: np.ndarray) -> None:
        """Add the next images, float32."""
        self._digest.update(np.ascontiguousarray(images, "<f4").data)

    def hexdigest(self, labels: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
        """The digest. All images must have been added."""
        self._digest.update(np.ascontiguousarray(labels, "<i8").data)
        for name in sorted(columns):
            self._digest.update(name.encode())
            self._digest.update(np.ascontiguousarray(columns[name], "<f8").data)
        return self._digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Hdf5Images:
    """X (n, H, W, C) and y (n,) of an HDF5 file. together: rows that are decompressed, and therefore read, together."""

    path: Path
    size: tuple[int, int, int, int]
    labels: np.ndarray
    names: Mapping[int, str]
    group: np.ndarray
    together: int
    what: str = "y"
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.size[2:], self.size[1]), np.float32)
        with open_data_sets(self.path, ["X"]) as (found,):
            if found.shape != (self.size[0], *self.size[2:], self.size[1]):
                raise InputError(f"{self.path} was changed while it was read")
            starts = np.flatnonzero(np.diff(rows // self.together, prepend=-1))
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                first, here = int(rows[start]), rows[start:stop]
                images[start:stop] = found[first : int(here[-1]) + 1][here - first]
        return check_finite(self.path, rows, np.moveaxis(images, -1, 1))


def open_hdf5(path: Path) -> Hdf5Images:
    """Open an electron/photon file: X (n, 32, 32, 2) = energy, time, or of any other height, width and channels; y (n,)."""
    with open_data_sets(path, ["X", "y"]) as (images, y):
        shape, dtype = images.shape, images.dtype
        if len(shape) != 4 or 0 in shape or dtype.kind not in "iuf":
            raise InputError(f"{path}: X is {dtype} of shape {shape}, and must be numbers (rows, height, width, channels)")
        check_image_size(path, shape[1:])
        if y.size != shape[0]:
            raise InputError(f"{path}: y is {y.dtype} of shape {y.shape}, and there are {shape[0]} images")
        labels = _labels(path, np.asarray(y[:]), shape[0])
        fit = max(BLOCK_BYTES // (int(np.prod(shape[1:])) * dtype.itemsize), 1)
        together = min((images.chunks or (CONTIGUOUS_ROWS,))[0], fit)
    n, height, width, channels = shape
    return Hdf5Images(path, (n, channels, height, width), labels, _names(path, labels), np.arange(n), together)


@dataclass(frozen=True, eq=False)
class JetImages:
    """X_jets and y of a Parquet file. bounds: first row of each row group, and the number of rows."""

    path: Path
    size: tuple[int, int, int, int]
    labels: np.ndarray
    group: np.ndarray
    columns: Mapping[str, np.ndarray]
    bounds: np.ndarray
    metadata: Any
    names: Mapping[int, str] = field(default_factory=dict)
    what: str = "y"

    def read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.size[1:]), np.float32)
        groups = np.unique(np.searchsorted(self.bounds, rows, side="right") - 1)
        held = np.concatenate([np.arange(self.bounds[g], self.bounds[g + 1]) for g in groups])
        wanted = np.searchsorted(held, rows)  # places among the rows of these row groups
        batch_rows = max(1, BLOCK_BYTES // (8 * int(np.prod(self.size[1:]))))
        file = open_parquet(self.path, self.metadata)
        first = done = 0
        for batch in batches(self.path, file, [JET_COLUMN], batch_rows, groups.tolist()):
            until = int(np.searchsorted(wanted, first + len(batch)))
            if until > done:
                lists = batch.column(0).take(wanted[done:until] - first)
                images[done:until] = _jets(self.path, lists, rows[done:until], self.size[1:])
            first, done = first + len(batch), until
            if done == len(rows):
                break
        return check_finite(self.path, rows, images)


def open_jets(path: Path) -> JetImages:
    """Open a quark/gluon file: X_jets, lists of 3 x 125 x 125, or of any other shape common to all rows; pt, m0, y."""
    file = open_parquet(path)
    names = file.schema_arrow.names
    if missing := [name for name in (JET_COLUMN, "y") if name not in names]:
        raise InputError(f"{path} has no column {missing[0]}, which images have; it has {', '.join(names)}")
    scalars = [name for name in ("pt", "m0") if name in names]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("y", *scalars)}
    for batch in batches(path, file, list(parts), 1 << 16):
        for name in parts:
            parts[name].append(_numbers(path, name, batch.column(batch.schema.get_field_index(name))))
    rows = file.metadata.num_rows
    if not rows:
        raise InputError(f"{path} holds no row")
    check_lists(path, file, JET_COLUMN, MAX_IMAGE_VALUES)
    first = next(batches(path, file, [JET_COLUMN], 1, [0]))
    shape = _jets(path, first.column(0), np.zeros(1, np.int64), None).shape[1:]
    bounds = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))])
    columns = {name: np.concatenate(parts[name]) for name in scalars}
    labels = _labels(path, np.concatenate(parts["y"]), rows)
    return JetImages(path, (rows, *shape), labels, np.arange(rows), columns, bounds, file.metadata)


@dataclass(frozen=True, eq=False)
class RunImages:
    """The maps of a run as images with a channel for each depth. The label is the run, the group the lumisection."""

    path: Path
    size: tuple[int, int, int, int]
    labels: np.ndarray
    names: Mapping[int, str]
    group: np.ndarray
    data: RunFile
    what: str = "run"
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.data.maps(rows), np.float32).reshape(len(rows), *self.size[1:])


def open_run(path: Path) -> RunImages:
    """Open a run in the original layout, checked as an import checks it."""
    data = read_run_file(path).data
    size = (data.size, data.depths, N_IETA, N_IPHI)
    labels = np.full(data.size, data.run, np.int64)
    return RunImages(path, size, labels, {data.run: str(data.run)}, data.lumisection, data)


def check_finite(path: Path, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The images. Raises InputError for the first row that holds NaN or infinity."""
    if not np.isfinite(images.sum(dtype=np.float64)):  # NaN and infinity propagate
        bad = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
        raise InputError(f"{path}, row {int(rows[np.argmax(bad)])}: the image holds NaN or infinity")
    return images


def check_image_size(path: Path, shape: Sequence[int]) -> None:
    """Raise InputError for images of more than MAX_IMAGE_VALUES values."""
    if prod(shape) > MAX_IMAGE_VALUES:
        raise InputError(
            f"{path}: an image has {'x'.join(map(str, shape))} values, and no more than {MAX_IMAGE_VALUES} are taken"
        )


def _jets(path: Path, lists: Any, rows: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        return dense(lists, 3, shape)
    except Ragged as error:
        raise InputError(f"{path}, row {int(rows[error.row])}: {JET_COLUMN}: {error}") from error


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path}: {name} holds a null")
    try:
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {name} is {column.type}, no number") from error


def _labels(path: Path, y: np.ndarray, rows: int) -> np.ndarray:
    """y as int64, (rows,)."""
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (rows,) or y.dtype.kind not in "iufb":
        raise InputError(f"{path}: y is {y.dtype} of shape {y.shape}, and there are {rows} images")
    if len(wrong := y[~np.isfinite(y) | (np.floor(y) != y)]):
        raise InputError(f"{path}: y must be whole numbers, one a class, and holds {wrong[0]}")
    return y.astype(np.int64)


def _names(path: Path, labels: np.ndarray) -> Mapping[int, str]:
    """electron or photon, if the file holds one class and its name tells which."""
    named = _NAMED.search(path.name)
    return {int(labels[0]): named[1].lower()} if named and (labels == labels[0]).all() else {}
