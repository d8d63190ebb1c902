"""An archive of images: Zarr v3 through Icechunk as the other one is, so that a file is taken whole or not at all.

    /               kind = images, image_layout_version, archive_id, columns, class_names
    images          (row, channel, y, x) float32, in chunks of about a megabyte
    label <columns> (row,)
    imports/        sha256 name rows first                                            (file,)

HDF5 cannot be appended to safely by a process that may be killed, and random rows of Parquet cost a row group each; chunks of
a few rows read at random cost one chunk each, and time travel tells on which files a model was trained.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from dqmstream.errors import ArchiveError, InputError
from dqmstream.lumisection import utf8
from dqmstream.storage import layout
from dqmstream.storage.columns import append_columns, append_line, read_column, read_rows
from dqmstream.storage.commits import Commits
from dqmstream.storage.failures import CODEC_ERRORS, telling
from dqmstream.storage.images.files import Contents, ImageFile, blocks, check_finite, cut, open_image_file
from dqmstream.storage.maintenance.tables import UNREADABLE, Finding, line_of
from dqmstream.storage.repository import is_repository, make_repository, open_repository

IMAGE_LAYOUT_VERSION = 1
CHUNK_BYTES = 1 << 20

FILE_COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sha256": ("str", {"long_name": "of shape, images, labels and columns"}),
    "name": ("str", {"long_name": "name of the file"}),
    "rows": ("int64", {"long_name": "rows in the file"}),
    "first": ("int64", {"long_name": "row of its first image"}),
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImportedImages:
    """What came of a file. shape: (C, H, W). known: the same contents had been imported before, and nothing changed."""

    name: str
    rows: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    known: bool


class ImageArchive:
    """A reader of the image archive at path, pinned to a snapshot; an `ImageFile` as any other.

    digests: of the files that were imported, in their order.
    """

    def __init__(self, path: Path, repository: icechunk.Repository, snapshot: str) -> None:
        self.path = path
        self.snapshot = snapshot
        self._repository = repository
        self.root = zarr.open_group(repository.readonly_session(snapshot_id=snapshot).store, mode="r", use_consolidated=False)
        attributes = dict(self.root.attrs)
        if attributes.get("kind") != "images":
            raise ArchiveError(f"{path} is an archive of lumisections, which holds no images: give another --archive")
        self.layout_version = int(attributes["image_layout_version"])
        if self.layout_version > IMAGE_LAYOUT_VERSION:
            raise ArchiveError(
                f"{path} has image layout {self.layout_version}, this dqmstream reads {IMAGE_LAYOUT_VERSION}: upgrade dqmstream"
            )
        self.archive_id = str(attributes["archive_id"])
        self.what = "y"
        self.names = {int(label): str(name) for label, name in attributes["class_names"].items()}
        self.columns = {name: read_column(self.root, name) for name in attributes["columns"]}
        self.size: tuple[int, int, int, int] = tuple(self.root["images"].shape)
        self.labels = read_column(self.root, "label")
        self.group = np.arange(self.size[0])
        self.digests: list[str] = _digests(self.root)

    @classmethod
    def open(cls, path: Path | str, snapshot: str | None = None) -> ImageArchive:
        """Open the archive at a snapshot, by default the newest. Raises ArchiveError if there is none, or of another kind."""
        path = Path(path)
        repository, head = open_repository(path)
        what = "cannot be read as an archive of images"
        with telling(path, what):
            try:
                return cls(path.resolve(), repository, snapshot or head)
            except CODEC_ERRORS as error:  # attributes that are not there, or not of their kind
                raise ArchiveError(f"{path} {what}: {line_of(error)}") from error

    @classmethod
    def open_or_create(cls, path: Path, like: ImageFile) -> ImageArchive:
        """Open the archive, or make one for images as this file has them. Raises ArchiveError if it holds others."""
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
        """File all of a file's images in one commit, held in memory a piece at a time. False: its contents are there already.

        progress: called with the rows done. Raises InputError, with nothing filed, where the file is not what sha256 says.
        """
        with Commits(self.path, self._repository).begin() as change:
            root = change.root
            if sha256 in _digests(root):
                return False
            first, contents = int(root["images"].shape[0]), Contents(file.size)
            for start, images in blocks(file, first, int(root["images"].chunks[0])):
                contents.add(images)
                here = slice(start, start + len(images))
                columns = {name: values[here] for name, values in file.columns.items()}
                append_columns(root, {"images": images, "label": file.labels[here], **columns})
                progress(here.stop)
            if contents.hexdigest(file.labels, file.columns) != sha256:
                raise InputError(f"{file.path} was changed while it was imported: nothing of it was filed")
            names = dict(root.attrs["class_names"])
            for label, name in ((label, utf8(name)) for label, name in file.names.items()):
                names[str(label)] = name if names.get(str(label), name) == name else str(label)
            root.attrs["class_names"] = names
            line: dict[str, str | int] = {"sha256": sha256, "name": file.path.name, "rows": file.size[0], "first": first}
            append_line(root["imports"], FILE_COLUMNS, line)
            change.commit(f"import {file.path.name}", lambda committed: sha256 in _digests(committed))
        return True

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
        """Files whose contents are not what was imported, or cannot be read. progress: rows done, and in all."""
        table = {name: self.root[f"imports/{name}"][:].tolist() for name in FILE_COLUMNS}
        findings, at = [], 0
        for sha256, name, rows, first in zip(*table.values(), strict=True):
            here = slice(first, first + rows)
            contents = Contents((rows, *self.size[1:]))
            try:
                for start, stop in cut(self, rows, first, int(self.root["images"].chunks[0])):
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
    """SHA-256 of the files that were imported, in their order."""
    return read_column(root, "imports/sha256").tolist()


def is_image_archive(path: Path) -> bool:
    """Whether an archive of images stands at path. Raises ArchiveError where what stands there cannot be read."""
    if not is_repository(path):
        return False
    repository, head = open_repository(path)
    root = zarr.open_group(repository.readonly_session(snapshot_id=head).store, mode="r", use_consolidated=False)
    return root.attrs.get("kind") == "images"


def import_images(
    paths: Sequence[Path], archive: Path, progress: Progress = lambda stage, n, total: None
) -> list[ImportedImages]:
    """Import files of images. All are read through before the archive is made or anything is written; twice is once.

    progress: called with "check" or "import", rows done and rows in all. Raises InputError for the first file that cannot be
    used, ArchiveError where the archive holds other things.
    """
    files = [open_image_file(path) for path in paths]
    for file in files:
        if file.what != "y":
            raise InputError(f"{file.path} holds lumisections of a run: import it into an archive of those")
    if is_repository(archive):
        ImageArchive.open_or_create(archive, files[0])
    total, done = sum(file.size[0] for file in files), 0
    for file in files[1:]:
        if (file.size[1:], sorted(file.columns)) != (files[0].size[1:], sorted(files[0].columns)):
            raise InputError(
                f"{file.path} holds images {file.size[1:]}, {files[0].path} {files[0].size[1:]}: import them apart"
            )
    sha256 = []
    for file in files:
        contents = Contents(file.size)
        for start, images in blocks(file):
            contents.add(images)
            progress("check", done + start + len(images), total)
        sha256.append(contents.hexdigest(file.labels, file.columns))
        done += file.size[0]
    standing, done, came = ImageArchive.open_or_create(archive, files[0]), 0, []
    for file, digest in zip(files, sha256, strict=True):
        before = done
        filed = standing.append(file, digest, lambda rows, before=before: progress("import", before + rows, total))  # type: ignore[misc]
        done += file.size[0]
        progress("import", done, total)
        classes = tuple(file.names.get(value, str(value)) for value in np.unique(file.labels).tolist())
        came.append(ImportedImages(file.path.name, file.size[0], file.size[1:], classes, not filed))
    return came


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
