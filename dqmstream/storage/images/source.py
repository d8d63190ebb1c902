"""Labelled images to train on, from one file, many, or an image archive: any rows in any order, never all in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.storage.images.archive import ImageArchive
from dqmstream.storage.images.files import HDF5_SUFFIXES, Contents, ImageFile, blocks, is_image_file, open_image_file
from dqmstream.storage.imports.find import is_hidden
from dqmstream.storage.imports.nested_lists import has_rows
from dqmstream.storage.repository import is_repository

_SUFFIXES = (*HDF5_SUFFIXES, ".parquet", ".npy")


class ImageSource:
    """Images of all files given, one file after another.

    shape: (n, C, H, W). classes: names of the classes, in the order of their labels. labels: int64, (n,), places in classes.
    group: int64, (n,); rows of a class that must not be split at random have neighbouring numbers: the lumisection for
    occupancy maps, otherwise the row. columns: further numbers of each row that all files have, float64, (n,), as pt of jets.
    """

    def __init__(self, parts: Sequence[ImageFile]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if part.size[1:] != first.size[1:] or part.what != first.what:
                raise InputError(
                    f"{part.path} holds images {part.size[1:]} named by {part.what}, "
                    f"{first.path} {first.size[1:]} by {first.what}: give files of one kind"
                )
        self._parts = parts
        self._bounds = np.cumsum([0, *(part.size[0] for part in parts)])
        values = np.concatenate([part.labels for part in parts])
        found, self.labels = np.unique(values, return_inverse=True)
        names = class_names(parts)
        self.classes = tuple(names.get(value, str(value)) for value in found.tolist())
        self.shape = (int(self._bounds[-1]), *first.size[1:])
        by_row = np.arange(self.shape[0])
        self.group = np.concatenate([part.group for part in parts]) if first.what == "run" else by_row
        shared = set.intersection(*(set(part.columns) for part in parts))
        self.columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in sorted(shared)}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images of these rows, in their order; rows may repeat: float32, (len(rows), C, H, W).

        Neighbouring rows are read together, so draw batches from shuffled chunks of rows rather than from all rows. Raises
        IndexError for a row that does not exist, InputError for a file that is damaged or holds NaN or infinity.
        """
        asked = np.asarray(rows, np.int64)
        ascending, places = np.unique(asked, return_inverse=True)
        if len(ascending) and not (ascending[0] >= 0 and ascending[-1] < self.shape[0]):
            raise IndexError(f"rows {ascending[0]} to {ascending[-1]} were asked of {self.shape[0]}")
        cuts = np.searchsorted(ascending, self._bounds)
        images = np.empty((len(ascending), *self.shape[1:]), np.float32)
        for part, first, start, stop in zip(self._parts, self._bounds, cuts, cuts[1:], strict=False):
            if stop > start:
                images[start:stop] = part.read(ascending[start:stop] - first)
        return images if np.array_equal(ascending, asked) else images[places]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all contents, hexadecimal: the same for files and for an archive of these files.

        Files are read once from end to end for it. An archive has it stored.
        """
        return hashlib.sha256(" ".join(digest for part in self._parts for digest in digests(part)).encode()).hexdigest()


def digests(part: ImageFile) -> list[str]:
    """Digest of a file's contents; for an archive, those of its imported files."""
    if isinstance(part, ImageArchive):
        return part.digests
    contents = Contents(part.size)
    for _, images in blocks(part):
        contents.add(images)
    return [contents.hexdigest(part.labels, part.columns)]


def class_names(parts: Sequence[ImageFile]) -> dict[int, str]:
    """Names of labels on which all files that name them agree."""
    names: dict[int, str] = {}
    for part in parts:
        for label, name in part.names.items():
            names[label] = name if names.get(label, name) == name else str(label)
    return names


def open_images(paths: Sequence[Path | str]) -> ImageSource:
    """Images of files (.hdf5, .h5, .parquet, Run<number>_Dataset_<name>.npy), of folders of them, or of one image archive.

    Raises InputError for a file that cannot be used, ArchiveError for an archive of lumisections.
    """
    given = [Path(path) for path in paths]
    if len(given) == 1 and is_repository(given[0]):
        return ImageSource([ImageArchive.open(given[0])])
    files: list[Path] = []
    for path in given:
        if is_repository(path):
            raise InputError(f"{path} is an archive: give it alone")
        files += image_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError("no file of images is given")
    if len({path.resolve() for path in files}) < len(files):
        raise InputError("a file is given twice: its images would be learnt and tested on")
    return ImageSource([open_image_file(path) for path in files])


def images_among(paths: Sequence[Path]) -> list[Path]:
    """The files of images among files and folders; empty if there are none.

    Raises InputError for a mixture of images and other files, and for a path that does not exist.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        for file in _data_in(path) if path.is_dir() else [path]:
            if not is_hidden(file):
                (found if is_image_file(file) else others).append(file)
    if found and others:
        raise InputError(f"{found[0]} holds images and {others[0]} does not: import them apart, into two archives")
    return found


def left_out(paths: Sequence[Path]) -> list[str]:
    """Notes on files that `images_among` and `image_files` leave out of folders although their names are those of data."""
    named = (file for path in paths if path.is_dir() for file in sorted(path.iterdir()) if file.suffix.lower() in _SUFFIXES)
    return [
        f"{file} is a hidden file: left out" if is_hidden(file) else f"{file} holds no row: left out"
        for file in named
        if is_hidden(file) or (file.suffix.lower() == ".parquet" and not has_rows(file))
    ]


def image_files(folder: Path) -> list[Path]:
    """Files of images in a folder, by name. Raises InputError if there are none."""
    found = [path for path in _data_in(folder) if path.suffix.lower() != ".npy" or "_Dataset_" in path.name]
    if not found:
        raise InputError(f"{folder} holds no file of images (.hdf5, .h5, .parquet, Run<number>_Dataset_<name>.npy)")
    return found


def _data_in(folder: Path) -> list[Path]:
    """Files of a folder that are images or maps by their names, without hidden files and Parquet without rows."""
    named = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and not is_hidden(path))
    return [path for path in named if path.suffix.lower() != ".parquet" or has_rows(path)]
