"""An archive of labelled images, in an Icechunk repository as the archive of lumisections: a file is taken whole or not at all.

    /               kind = images, image_layout_version, archive_id, columns, class_names
    images          (row, channel, y, x) float32, in chunks of about a megabyte
    label <columns> (row,)
    imports/        sha256 name rows first                                            (file,)

A process that may be killed cannot append to HDF5 safely, and a random row of Parquet costs a whole row group. Here a random
row costs a chunk of a few rows, and older snapshots show on which files a model was trained.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from dqmstream.errors import ArchiveError, InputError
from dqmstream.lumisection import utf8
from dqmstream.storage import layout
from dqmstream.storage.columns import Columns, append_columns, append_line, array, number, read_column, read_rows, subgroup
from dqmstream.storage.commits import Commits
from dqmstream.storage.failures import CODEC_ERRORS, telling
from dqmstream.storage.images.files import Contents, ImageFile, blocks, check_finite, cut, open_image_file
from dqmstream.storage.maintenance.findings import UNREADABLE, Finding, line_of
from dqmstream.storage.repository import is_repository, make_repository, open_repository

IMAGE_LAYOUT_VERSION = 1
CHUNK_BYTES = 1 << 20

FILE_COLUMNS: Columns = {
    "sha256": ("str", {"long_name": "of shape, images, labels and columns"}),
    "name": ("str", {"long_name": "name of the file"}),
    "rows": ("int64", {"long_name": "rows in the file"}),
    "first": ("int64", {"long_name": "row of its first image"}),
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImportedImages:
    """What became of a file. shape: (C, H, W). known: its contents were imported before, so nothing was written."""

    name: str
    rows: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    known: bool


class ImageArchive:
    """A reader of the image archive at path, pinned to a snapshot. It is an `ImageFile`.

    digests: SHA-256 of the contents of each imported file, in their order.
    """

    def __init__(self, path: Path, repository: icechunk.Repository, snapshot: str) -> None:
        self.path = path
        self.snapshot = snapshot
        self._repository = repository
        self.root = zarr.open_group(repository.readonly_session(snapshot_id=snapshot).store, mode="r", use_consolidated=False)
        if self.root.attrs.get("kind") != "images":
            raise ArchiveError(f"{path} is an archive of lumisections, which holds no images: give another --archive")
        self.layout_version = number(self.root, "image_layout_version")
        if self.layout_version > IMAGE_LAYOUT_VERSION:
            raise ArchiveError(
                f"{path} has image layout {self.layout_version}, this dqmstream reads {IMAGE_LAYOUT_VERSION}: upgrade dqmstream"
            )
        self.archive_id = str(self.root.attrs["archive_id"])
        self.what = "y"
        self.names = {int(label): name for label, name in _class_names(self.root).items()}
        self.columns = {name: read_column(self.root, name) for name in _column_names(self.root)}
        rows, channels, height, width = array(self.root, "images").shape
        self.size = (rows, channels, height, width)
        self.labels = read_column(self.root, "label")
        self.group = np.arange(self.size[0])
        self.digests = _digests(self.root)

    @classmethod
    def open(cls, path: Path | str, snapshot: str | None = None) -> ImageArchive:
        """Open the archive at a snapshot, by default the newest. Raises ArchiveError if it is missing or of lumisections."""
        path = Path(path)
        repository, head = open_repository(path)
        what = "cannot be read as an archive of images"
        with telling(path, what):
            try:
                return cls(path.resolve(), repository, snapshot or head)
            except CODEC_ERRORS as error:  # attributes that are missing or of a wrong type
                raise ArchiveError(f"{path} {what}: {line_of(error)}") from error

    @classmethod
    def open_or_create(cls, path: Path, like: ImageFile) -> ImageArchive:
        """Open the archive, or make one for images like this file's. Raises ArchiveError if it holds images of another kind."""
        if not is_repository(path):
            make_repository(path, lambda store: _write_root(store, like))
        archive = cls.open(path)
        theirs, ours = (like.size[1:], sorted(like.columns)), (archive.size[1:], sorted(archive.columns))
        if theirs != ours:
            raise ArchiveError(
                f"{path} holds images {ours[0]} with columns {ours[1]}, {like.path} {theirs[0]} with {theirs[1]}: "
                "give another --archive"
            )
        return archive

    def read(self, rows: np.ndarray) -> np.ndarray:
        with telling(self.path, "cannot be read"):
            images = read_rows(self.root, ["images"], rows)["images"]
        return check_finite(self.path, rows, images)

    def append(self, file: ImageFile, sha256: str, progress: Callable[[int], None]) -> bool:
        """File all images of a file in one commit, piece by piece in memory. False if its contents are there already.

        sha256: of the contents. progress: called with the rows done. Raises InputError, with nothing filed, if the file's
        contents have another hash.
        """
        with Commits(self.path, self._repository).begin() as change:
            root = change.root
            if sha256 in _digests(root):
                return False
            stored, contents = array(root, "images"), Contents(file.size)
            first = stored.shape[0]
            for start, images in blocks(file, first, stored.chunks[0]):
                contents.add(images)
                here = slice(start, start + len(images))
                columns = {name: values[here] for name, values in file.columns.items()}
                append_columns(root, {"images": images, "label": file.labels[here], **columns})
                progress(here.stop)
            if contents.hexdigest(file.labels, file.columns) != sha256:
                raise InputError(f"{file.path} was changed while it was imported: nothing of it was filed")
            names = _class_names(root)
            for label, name in ((label, utf8(name)) for label, name in file.names.items()):
                names[str(label)] = name if names.get(str(label), name) == name else str(label)
            root.attrs["class_names"] = names
            line: dict[str, str | int] = {"sha256": sha256, "name": file.path.name, "rows": file.size[0], "first": first}
            append_line(subgroup(root, "imports"), FILE_COLUMNS, line)
            change.commit(f"import {file.path.name}", lambda committed: sha256 in _digests(committed))
        return True

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
        """Findings: files whose contents are not what was imported, or cannot be read. progress: rows done, rows in all."""
        table = {name: read_column(self.root, f"imports/{name}").tolist() for name in FILE_COLUMNS}
        findings, at = [], 0
        for sha256, name, rows, first in zip(*table.values(), strict=True):
            here = slice(first, first + rows)
            contents = Contents((rows, *self.size[1:]))
            try:
                for start, stop in cut(self, rows, first, array(self.root, "images").chunks[0]):
                    contents.add(self.read(np.arange(first + start, first + stop)))
                    progress(first + stop, self.size[0])
                columns = {name: values[here] for name, values in self.columns.items()}
                if contents.hexdigest(self.labels[here], columns) != sha256:
                    findings.append(Finding(name, "images, labels or columns are not what was imported"))
            except (*UNREADABLE, InputError) as error:
                findings.append(Finding(name, f"cannot be read: {line_of(error)}"))
            if first != at:
                findings.append(Finding(name, f"it begins at row {first}, the file before ended at {at}"))
            at = first + rows
        if not at == self.size[0] == len(self.labels):
            findings.append(Finding("images", f"{self.size[0]} images and {len(self.labels)} labels of {at} rows imported"))
        return findings


def _digests(root: zarr.Group) -> list[str]:
    """SHA-256 of the contents of each imported file, in their order."""
    return [str(digest) for digest in read_column(root, "imports/sha256")]


def _class_names(root: zarr.Group) -> dict[str, str]:
    """Names of labels. Raises TypeError where the attribute is of another type."""
    names = root.attrs["class_names"]
    if not isinstance(names, dict):
        raise TypeError("the attribute class_names is no object")
    return {str(label): str(name) for label, name in names.items()}


def _column_names(root: zarr.Group) -> list[str]:
    """Names of the further numbers of each row. Raises TypeError where the attribute is of another type."""
    names = root.attrs["columns"]
    if not isinstance(names, list):
        raise TypeError("the attribute columns is no list")
    return [str(name) for name in names]


def is_image_archive(path: Path) -> bool:
    """Whether there is an archive of images at path. Raises ArchiveError for an archive that cannot be read."""
    if not is_repository(path):
        return False
    repository, head = open_repository(path)
    root = zarr.open_group(repository.readonly_session(snapshot_id=head).store, mode="r", use_consolidated=False)
    return bool(root.attrs.get("kind") == "images")


def import_images(
    paths: Sequence[Path], archive: Path, progress: Progress = lambda stage, n, total: None
) -> list[ImportedImages]:
    """Import files of images. All are read before the archive is made or anything is written; a known file changes nothing.

    progress: called with "check" or "import", rows done, rows in all. Raises InputError for the first file that cannot be used,
    ArchiveError if the archive holds anything else.
    """
    files = [open_image_file(path) for path in paths]
    _check_one_kind(files)
    if is_repository(archive):
        ImageArchive.open_or_create(archive, files[0])
    total = sum(file.size[0] for file in files)
    digests = _hash_all(files, lambda rows: progress("check", rows, total))
    into, done, imported = ImageArchive.open_or_create(archive, files[0]), 0, []
    for file, digest in zip(files, digests, strict=True):
        is_new = into.append(file, digest, partial(_add_rows, progress, done, total))
        done += file.size[0]
        progress("import", done, total)
        classes = tuple(file.names.get(value, str(value)) for value in np.unique(file.labels).tolist())
        imported.append(ImportedImages(file.path.name, file.size[0], file.size[1:], classes, not is_new))
    return imported


def _check_one_kind(files: Sequence[ImageFile]) -> None:
    """Raise InputError for a file of lumisections, and for images whose shape or columns differ from the first file's."""
    for file in files:
        if file.what != "y":
            raise InputError(f"{file.path} holds lumisections of a run: import it into an archive of lumisections")
    for file in files[1:]:
        if (file.size[1:], sorted(file.columns)) != (files[0].size[1:], sorted(files[0].columns)):
            raise InputError(
                f"{file.path} holds images {file.size[1:]}, {files[0].path} {files[0].size[1:]}: import them apart"
            )


def _hash_all(files: Sequence[ImageFile], progress: Callable[[int], None]) -> list[str]:
    """SHA-256 of each file's contents. progress: called with the rows done."""
    digests, done = [], 0
    for file in files:
        contents = Contents(file.size)
        for start, images in blocks(file):
            contents.add(images)
            progress(done + start + len(images))
        digests.append(contents.hexdigest(file.labels, file.columns))
        done += file.size[0]
    return digests


def _add_rows(progress: Progress, before: int, total: int, rows: int) -> None:
    progress("import", before + rows, total)


def _write_root(store: Any, like: ImageFile) -> None:
    root = zarr.create_group(
        store,
        zarr_format=3,
        attributes={
            "kind": "images",
            "image_layout_version": IMAGE_LAYOUT_VERSION,
            "archive_id": uuid.uuid4().hex[:12],
            "columns": sorted(like.columns),
            "class_names": {},
        },
    )
    shape = like.size[1:]
    root.create_array(
        "images",
        shape=(0, *shape),
        chunks=(max(1, CHUNK_BYTES // (4 * int(np.prod(shape)))), *shape),
        dtype="float32",
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle"),
        dimension_names=("row", "channel", "y", "x"),
    )
    columns: dict[str, tuple[str, Mapping[str, Any]]] = {"label": ("int64", {})}
    columns |= {name: ("float64", {}) for name in like.columns}
    for name in columns:
        layout.make_column(root, name, "row", columns)
    layout.make_table(root, "imports", "file", FILE_COLUMNS)
