"""Reading an archive: every lumisection once, in an Icechunk repository that zarr and xarray can read.

An `Archive` is a reader pinned to a snapshot, so its contents never change. `archive.refresh()` gives a reader of the newest
snapshot, `archive.at(snapshot)` one of an older snapshot. `storage.writer` writes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

import icechunk
import numpy as np
import xarray as xr
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import Geometry
from dqmstream.storage import layout
from dqmstream.storage.columns import length_of, number, read_column, subgroup
from dqmstream.storage.commits import Commits
from dqmstream.storage.failures import first_line, telling
from dqmstream.storage.labels.versions import Labels
from dqmstream.storage.locks import exclusive
from dqmstream.storage.repository import is_repository, make_repository, open_repository
from dqmstream.storage.row_index import RowIndex
from dqmstream.storage.run_table import RunTable
from dqmstream.storage.run_view import run_view
from dqmstream.storage.summary_table import as_html, as_text

DTYPES = ("float32", "uint16")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of a compaction: snapshots that were dropped, and the archive's files and bytes before and after."""

    snapshots: int
    files_before: int
    files: int
    bytes_before: int
    bytes: int


def _names_archive(method: Callable[Concatenate[Archive, P], T]) -> Callable[Concatenate[Archive, P], T]:
    """Turn errors of the storage in a method into an ArchiveError that names the archive."""

    @wraps(method)
    def named_method(archive: Archive, *arguments: P.args, **named: P.kwargs) -> T:
        with telling(archive.path, "cannot be read" if method.__name__ not in ("tag", "untag") else "cannot be written"):
            return method(archive, *arguments, **named)

    return named_method


class Archive:
    """A reader of the archive at path, pinned to a snapshot. Make one with `Archive.open` or `Archive.create`.

    archive_id: 12 hexadecimal digits, given when the archive was made. geometry, dtype: of every stored map.
    source: dataset and monitoring element, empty until the first row that has one. layout_version: of this snapshot.
    root: its root group, read-only. labels: golden lumisections and luminosity at this snapshot.

    In a `with` block the reader's memory is released at the end. It holds no lock and no open file.
    """

    def __init__(self, path: Path | str, repository: icechunk.Repository, snapshot: str, index: RowIndex | None = None) -> None:
        self.path = Path(path)
        self.snapshot = snapshot
        self._repository = repository
        self._index = index
        try:
            self.store = repository.readonly_session(snapshot_id=snapshot).store
            self.root = zarr.open_group(self.store, mode="r", use_consolidated=False)
        except icechunk.IcechunkError as error:
            raise ArchiveError(f"{path} has no snapshot {snapshot}: {first_line(error)}") from error
        self.layout_version = layout.check_version(self.root, path)
        attributes = self.root.attrs
        self.archive_id = str(attributes["archive_id"])
        self.geometry = Geometry(number(self.root, "depths"))
        self.dtype = np.dtype(str(attributes["dtype"]))
        self.source = str(attributes["source"])
        self.labels = Labels(self.root)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._index = None

    def __repr__(self) -> str:
        return as_text(f"dqmstream.Archive {self.path}", self._described())

    def _repr_html_(self) -> str:
        return as_html(f"dqmstream.Archive {self.path}", self._described())

    def _described(self) -> dict[str, str]:
        """What a user wants to see of an archive first. An archive whose rows cannot be read is described all the same."""
        maps = f"{' x '.join(map(str, self.geometry.shape))} (depth, ieta, iphi), {self.dtype.name}"
        known = {"snapshot": self.snapshot, "maps": maps, "source": self.source or "unknown"}
        try:
            runs = self.runs()
        except ArchiveError as error:
            return {"runs": str(error), **known}
        numbers = f" ({runs[0].run} to {runs[-1].run})" if len(runs) > 1 else f" ({runs[0].run})" if runs else ""
        return {
            "runs": f"{len(runs)}{numbers}",
            "lumisections": str(sum(summary.lumisections for summary in runs)),
            **known,
        }

    @classmethod
    def create(cls, path: Path | str, *, geometry: Geometry | None = None, dtype: str = "float32", source: str = "") -> Archive:
        """Make an empty archive at path, a folder that is missing or empty. It is made whole or not at all.

        Raises ArchiveError if the folder is not empty.
        """
        if dtype not in DTYPES:
            raise ArchiveError(f"an archive holds float32 or uint16, not {dtype}")
        path = Path(path)
        identity = uuid.uuid4().hex[:12]
        make_repository(
            path,
            lambda store: layout.write_root(
                store, archive_id=identity, geometry=geometry or Geometry(), dtype=dtype, source=source
            ),
        )
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str, snapshot: str | None = None) -> Archive:
        """Open the archive at path, at a snapshot or a tag; by default at the newest snapshot.

        Raises ArchiveError if there is none, if it cannot be read, or if a newer dqmstream made it.
        """
        path = Path(path)
        repository, head = open_repository(path)
        archive = cls(path.resolve(), repository, head)
        return archive if snapshot is None else archive.at(snapshot)

    @classmethod
    def open_or_create(
        cls, path: Path | str, *, geometry: Geometry | None = None, dtype: str | None = None, source: str | None = None
    ) -> Archive:
        """Open the archive, or make it with these properties. Raises ArchiveError if the existing one has others."""
        if not cls.exists(path):
            try:
                return cls.create(path, geometry=geometry, dtype=dtype or "float32", source=source or "")
            except ArchiveError:
                if not cls.exists(path):  # another process may have made it meanwhile
                    raise
        archive = cls.open(path)
        for name, asked, stored in (
            ("depths", geometry and geometry.depths, archive.geometry.depths),
            ("dtype", dtype, archive.dtype.name),
            ("source", source, archive.source),
        ):
            if asked and stored and asked != stored:
                raise ArchiveError(f"{path} was made with {name} {stored}, not {asked}: leave it out or use another archive")
        return archive

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is an archive at path. It may still be unreadable."""
        return is_repository(Path(path))

    @_names_archive
    def refresh(self) -> Archive:
        """A reader of the newest snapshot, itself if nothing was added. It takes over the index, which only grows."""
        head = self._repository.lookup_branch("main")
        if head == self.snapshot:
            return self
        index, self._index = self._index, None
        archive = Archive(self.path, self._repository, head, index)
        if index is not None:
            index.update(archive.root)
        return archive

    @_names_archive
    def at(self, snapshot: str) -> Archive:
        """A reader of the archive at a snapshot or a tag."""
        if snapshot in self._repository.list_tags():
            snapshot = self._repository.lookup_tag(snapshot)
        if snapshot == self.snapshot:
            return self
        archive = Archive(self.path, self._repository, snapshot)
        if self._index is not None:
            archive._index = self._index.as_of(archive.root)
        return archive

    @_names_archive
    def tag(self, name: str) -> None:
        """Name this snapshot, so that it is never expired. Giving it the same name again changes nothing.

        Raises ArchiveError for a name that another snapshot has, or that was removed before.
        """
        if name in self._repository.list_tags():
            if self._repository.lookup_tag(name) == self.snapshot:
                return
            raise ArchiveError(f"{self.path} has a tag {name} for another snapshot")
        self._repository.create_tag(name, self.snapshot)

    @_names_archive
    def untag(self, prefix: str) -> None:
        """Remove the tags whose names begin with prefix. Icechunk never accepts a removed name again."""
        for name in self._repository.list_tags():
            if name.startswith(prefix):
                self._repository.delete_tag(name)

    @_names_archive
    def tags(self) -> dict[str, str]:
        """Snapshot of each tag."""
        return {name: self._repository.lookup_tag(name) for name in sorted(self._repository.list_tags())}

    def expire(self, keep_s: float) -> int:
        """Drop old snapshots, and the files that only they needed. Returns the number of snapshots.

        Kept are tagged snapshots and those that were the newest at any time in the last keep_s seconds. A reader pinned to a
        dropped snapshot will fail. Writers wait meanwhile. Raises ArchiveError if the storage cannot be read or written.

        Each commit leaves about 13 small files behind: millions a year from a live feed.
        """
        # A fresh handle: this one may remember, and write again, what other processes changed or dropped.
        repository = self._repository.reopen()
        with exclusive(self.path), telling(self.path, "cannot be cleared of old snapshots"):
            cut = datetime.now(UTC) - timedelta(seconds=keep_s)
            for info in repository.ancestry(branch="main"):
                if info.written_at < cut:
                    cut = info.written_at  # it was the newest until its successor was committed
                    break
            repository.expire_snapshots(cut)
            return int(repository.garbage_collect(cut).snapshots_deleted)

    def compact(self, keep_s: float) -> Compacted:
        """Rewrite the manifests of the newest snapshot, then expire as `expire` does. Rows and tags stay as they are."""
        before = _files(self.path)
        self.commits().rewrite_manifests()
        snapshots = self.expire(keep_s)
        after = _files(self.path)
        return Compacted(snapshots, len(before), len(after), sum(before), sum(after))

    def writable_session(self) -> icechunk.Session:
        """A session at the newest snapshot, without the writers' lock."""
        return self._repository.writable_session("main")

    def commits(self) -> Commits:
        """Maker of commits to this archive, for `storage.writer` and `storage.labels.filing`."""
        return Commits(self.path, self._repository)

    @property
    def committed(self) -> datetime:
        """When this snapshot was committed, in UTC, by the clock of the machine that committed it."""
        return self._repository.lookup_snapshot(self.snapshot).written_at

    @property
    @_names_archive
    def index(self) -> RowIndex:
        """Index of all rows at this snapshot, read at the first use."""
        if self._index is None:
            self._index = RowIndex()
            self._index.update(self.root)
        return self._index

    def runs(self) -> RunTable:
        """Summaries of the runs, in the order in which they arrived."""
        return RunTable(self.index.summaries())

    def next_offset(self, feed: str, partition: int) -> int | None:
        """First offset of the partition that is not in the archive; None if it has no log."""
        try:
            return number(subgroup(self.root, layout.feed_path(feed, partition)), "next_offset")
        except KeyError:
            return None

    def holds_rows(self, feed: str) -> bool:
        """Whether the archive holds a row of any partition of the feed."""
        return any(name == feed and length_of(log, "run") > 0 for name, _, log in self.logs())

    @property
    def is_empty(self) -> bool:
        """Whether the archive holds no row."""
        return not any(length_of(log, "run") for _, _, log in self.logs())

    def logs(self) -> Iterator[tuple[str, int, zarr.Group]]:
        """Feed, partition and group of each log, sorted."""
        yield from sorted(layout.logs(self.root), key=lambda log: log[:2])

    def offsets(self) -> dict[str, dict[int, tuple[int, int]]]:
        """[first_offset, next_offset) of each partition of each feed."""
        found: dict[str, dict[int, tuple[int, int]]] = {}
        for feed, partition, log in self.logs():
            found.setdefault(feed, {})[partition] = (number(log, "first_offset"), number(log, "next_offset"))
        return found

    @_names_archive
    def control(self, feed: str, partition: int) -> xr.Dataset:
        """The partition's control entries: variables offset, until, kind, run, lumisection, reason (entry)."""
        group = subgroup(self.root, f"{layout.feed_path(feed, partition)}/control")
        return xr.Dataset({name: ("entry", read_column(group, name)) for name in layout.CONTROL_COLUMNS})

    @_names_archive
    def imported(self) -> dict[str, int]:
        """Run of each imported file, by the SHA-256 of its contents."""
        table = subgroup(self.root, "imports")
        digests, runs = (read_column(table, name).tolist() for name in ("sha256", "run"))
        return dict(zip(digests, runs, strict=True))

    @_names_archive
    def run(self, run: int, *, maps: bool = True, filed: int | None = None, last: int | None = None) -> xr.Dataset:
        """The run's lumisections in order, the newest revision of each.

        maps: with `occupancy`. filed: as the run was after so many of its rows were filed. last: only lumisections up to this
        number; `filed` then counts rows of these. Rows are only ever added, so this also shows what an expired snapshot held.

        Variables: occupancy (lumisection, depth, ieta, iphi); by lumisection: time, produced (when the broker took the
        message), committed (when it was filed), n_events, pileup, content (hash), quality, revision (0 is the first), and, if
        such labels were imported, golden (1 good, 0 bad, -1 unknown), delivered_lumi and recorded_lumi. Coordinates:
        lumisection, depth (from 1), ieta, iphi. The maps are read when they are used, which may raise ArchiveError too.
        Raises ArchiveError if the archive has no row of the run.
        """
        logs, newest = self.index.newest(run, filed=filed, last=last)
        if not len(newest):
            raise ArchiveError(f"{self.path} holds no lumisection of run {run}")
        view = run_view(self.path, self.root, logs, newest, self.labels, run, depths=self.geometry.depths, maps=maps)
        return view.assign_attrs(run=run, source=self.source, snapshot=self.snapshot, archive_id=self.archive_id)


def _files(path: Path) -> list[int]:
    """Sizes in bytes of the files under path."""
    return [file.stat().st_size for file in path.rglob("*") if file.is_file()]
