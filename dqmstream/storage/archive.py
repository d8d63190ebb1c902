"""The archive: every lumisection once, in an Icechunk repository that zarr and xarray can read.

An `Archive` is a reader pinned to a snapshot: what it shows never changes under it. `archive.refresh()` gives a reader of
the newest snapshot, `archive.at(snapshot)` one of an older. Writing is `storage.writer`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import icechunk
import numpy as np
import xarray as xr
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import IETA, IPHI, Geometry
from dqmstream.storage import layout
from dqmstream.storage.commits import Commits
from dqmstream.storage.failures import first_line, telling
from dqmstream.storage.labels.versions import UNKNOWN, Labels
from dqmstream.storage.layout import NAT, Quality
from dqmstream.storage.locks import exclusive
from dqmstream.storage.repository import is_repository, make_repository, open_repository
from dqmstream.storage.row_index import RowIndex, RunSummary

DTYPES = ("float32", "uint16")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What compaction did: snapshots that were dropped, and the archive's files and bytes before and after."""

    snapshots: int
    files_before: int
    files: int
    bytes_before: int
    bytes: int


def _told(method: Callable[Concatenate[Archive, P], T]) -> Callable[Concatenate[Archive, P], T]:
    """Have what the storage raises in the method told as an ArchiveError that names the archive."""

    @wraps(method)
    def told(archive: Archive, *arguments: P.args, **named: P.kwargs) -> T:
        with telling(archive.path, "cannot be read" if method.__name__ not in ("tag", "untag") else "cannot be written"):
            return method(archive, *arguments, **named)

    return told


class Archive:
    """A reader of the archive at path, pinned to a snapshot.

    archive_id: 12 hexadecimal digits, given when it was made. geometry, dtype: of every stored map. source: dataset and
    monitoring element, empty until the first row that has one. layout_version: of this snapshot, which stays as it was written.
    root: its root group, read-only. labels: golden lumisections and luminosity, as of this snapshot.
    """

    def __init__(self, path: Path, repository: icechunk.Repository, snapshot: str, index: RowIndex | None = None) -> None:
        self.path = path
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
        self.geometry = Geometry(int(attributes["depths"]))
        self.dtype = np.dtype(str(attributes["dtype"]))
        self.source = str(attributes["source"])
        self.labels = Labels(self.root)

    @classmethod
    def create(cls, path: Path | str, *, geometry: Geometry | None = None, dtype: str = "float32", source: str = "") -> Archive:
        """Make an empty archive at path, a folder that is missing or empty: whole or not at all.

        Raises ArchiveError where something else is there.
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
        """Open the archive at path, at a snapshot or a tag, by default at the newest snapshot.

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
        """Open the archive, or make it from what is given. Raises ArchiveError if the one that stands differs."""
        if not cls.exists(path):
            try:
                return cls.create(path, geometry=geometry, dtype=dtype or "float32", source=source or "")
            except ArchiveError:
                if not cls.exists(path):  # not made by another process meanwhile
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
        """Whether there is an archive at path; it may still be unreadable."""
        return is_repository(Path(path))

    @_told
    def refresh(self) -> Archive:
        """A reader of the newest snapshot; itself where nothing was added. It takes over the index, which only grows."""
        head = self._repository.lookup_branch("main")
        if head == self.snapshot:
            return self
        index, self._index = self._index, None
        archive = Archive(self.path, self._repository, head, index)
        if index is not None:
            index.update(archive.root)
        return archive

    @_told
    def at(self, snapshot: str) -> Archive:
        """A reader of the archive as it was at a snapshot or a tag."""
        if snapshot in self._repository.list_tags():
            snapshot = self._repository.lookup_tag(snapshot)
        if snapshot == self.snapshot:
            return self
        archive = Archive(self.path, self._repository, snapshot)
        if self._index is not None:
            archive._index = self._index.as_of(archive.root)
        return archive

    @_told
    def tag(self, name: str) -> None:
        """Name this snapshot, so that it outlives expiry. The same name for the same snapshot is no error.

        Raises ArchiveError for a name that another snapshot has, or that was removed.
        """
        if name in self._repository.list_tags():
            if self._repository.lookup_tag(name) == self.snapshot:
                return
            raise ArchiveError(f"{self.path} has a tag {name} for another snapshot")
        self._repository.create_tag(name, self.snapshot)

    @_told
    def untag(self, prefix: str) -> None:
        """Remove the tags whose names begin with prefix. Icechunk never takes a removed name again."""
        for name in self._repository.list_tags():
            if name.startswith(prefix):
                self._repository.delete_tag(name)

    @_told
    def tags(self) -> dict[str, str]:
        """Snapshot of each tag."""
        return {name: self._repository.lookup_tag(name) for name in sorted(self._repository.list_tags())}

    def expire(self, keep_s: float) -> int:
        """Drop untagged snapshots that were the newest at no time in the last keep_s seconds, and the files that only they
        needed. Returns how many snapshots.

        A commit leaves about 13 small files behind, which a live feed would pile up to millions a year. The newest snapshot
        and tagged ones stay, and so does what a reader was refreshed to within keep_s; a reader that is pinned to one that goes
        will fail. No commit is under way meanwhile. Raises ArchiveError where the storage cannot be read or written.
        """
        # What others edited or dropped must not be taken from what this process remembers, and written again.
        repository = self._repository.reopen()
        with exclusive(self.path), telling(self.path, "cannot be cleared of old snapshots"):
            cut = datetime.now(UTC) - timedelta(seconds=keep_s)
            for info in repository.ancestry(branch="main"):
                if info.written_at < cut:
                    cut = info.written_at  # it was the newest until the one before it was committed
                    break
            repository.expire_snapshots(cut)
            return int(repository.garbage_collect(cut).snapshots_deleted)

    def compact(self, keep_s: float) -> Compacted:
        """Write the manifests of the newest snapshot anew, then expire as `expire` does. Rows and tags stay as they are.

        Readers that are pinned to a snapshot that goes will fail, as with `expire`; writers wait.
        """
        before = _files(self.path)
        self.commits().rewrite_manifests()
        snapshots = self.expire(keep_s)
        after = _files(self.path)
        return Compacted(snapshots, len(before), len(after), sum(before), sum(after))

    def writable_session(self) -> icechunk.Session:
        """A session at the newest snapshot, without the lock that writers hold."""
        return self._repository.writable_session("main")

    def commits(self) -> Commits:
        """What makes commits to this archive; for `storage.writer` and `storage.labels.versions`."""
        return Commits(self.path, self._repository)

    @property
    def committed(self) -> datetime:
        """When this snapshot was committed, by the clock of the machine that did it, as UTC."""
        return self._repository.lookup_snapshot(self.snapshot).written_at

    @property
    @_told
    def index(self) -> RowIndex:
        if self._index is None:
            self._index = RowIndex()
            self._index.update(self.root)
        return self._index

    def runs(self) -> list[RunSummary]:
        """What is known of each run, in the order of arrival."""
        return self.index.summaries()

    def next_offset(self, feed: str, partition: int) -> int | None:
        """First offset of the partition that is not in the archive; None where nothing is known of the partition."""
        try:
            return int(self.root[layout.feed_path(feed, partition)].attrs["next_offset"])
        except KeyError:
            return None

    def holds_rows(self, feed: str) -> bool:
        """Whether a row of the feed is in the archive, of any partition."""
        return any(name == feed and log["run"].shape[0] for name, _, log in self.logs())

    @property
    def is_empty(self) -> bool:
        """Whether no row is in the archive, of any feed."""
        return not any(log["run"].shape[0] for _, _, log in self.logs())

    def logs(self) -> Iterator[tuple[str, int, zarr.Group]]:
        """Feed, partition and group of each log."""
        for feed, partitions in sorted(self.root["feeds"].groups(), key=lambda named: named[0]):
            for partition, log in sorted(partitions.groups(), key=lambda named: int(named[0])):
                yield feed, int(partition), log

    def offsets(self) -> dict[str, dict[int, tuple[int, int]]]:
        """[first_offset, next_offset) of each partition of each feed."""
        found: dict[str, dict[int, tuple[int, int]]] = {}
        for feed, partition, log in self.logs():
            found.setdefault(feed, {})[partition] = (int(log.attrs["first_offset"]), int(log.attrs["next_offset"]))
        return found

    @_told
    def control(self, feed: str, partition: int) -> xr.Dataset:
        """The partition's control entries: offset, until, kind, run, lumisection, reason."""
        group = self.root[f"{layout.feed_path(feed, partition)}/control"]
        return xr.Dataset({name: ("entry", layout.read_column(group, name)) for name in layout.CONTROL_COLUMNS})

    @_told
    def imported(self) -> dict[str, int]:
        """Run of each file that was imported, by the SHA-256 of what was read."""
        table = self.root["imports"]
        digests, runs = (layout.read_column(table, name).tolist() for name in ("sha256", "run"))
        return dict(zip(digests, runs, strict=True))

    @_told
    def run(self, run: int, *, maps: bool = True, filed: int | None = None, last: int | None = None) -> xr.Dataset:
        """The run's lumisections in order, the newest revision of each; without maps, all but `occupancy`.

        filed: as they were when so many rows of the run had been filed. last: those up to that number alone, whose rows are
        then the ones counted. Rows are only ever added, so this shows what an expired snapshot showed.

        Variables: occupancy (lumisection, depth, ieta, iphi), time, produced (when the broker took it), committed (when it was
        filed), n_events, pileup, content, quality, revision (lumisection); where such labels were imported also golden (1 good,
        0 bad, -1 unknown), delivered_lumi and recorded_lumi (lumisection). Coordinates lumisection, depth (from 1), ieta, iphi.
        Raises ArchiveError if no row has the run.
        """
        logs, table = self.index.newest(run, filed=filed, last=last)
        if not len(table):
            raise ArchiveError(f"{self.path} holds no lumisection of run {run}")
        names = [*layout.TIMES, "n_events", "pileup", "content", "quality", *(["occupancy"] if maps else [])]
        parts = []
        for place in np.unique(table[:, 2]):
            here = np.flatnonzero(table[:, 2] == place)
            part = layout.read_rows(self.root[layout.feed_path(*logs[place])], names, table[here, 3])
            part.setdefault("produced", np.full(len(here), NAT))  # layout 1 has none
            parts.append((here, part))
        columns = parts[0][1] if len(parts) == 1 else _merge(len(table), parts)
        occupancy = columns.pop("occupancy", None)
        times = {name: columns.pop(name).view("datetime64[ns]") for name in layout.TIMES}  # NAT is NumPy's own NaT
        axes = ("lumisection", "depth", "ieta", "iphi")
        labels = self._labels_of(run, table[:, 0], columns["quality"])
        return xr.Dataset(
            {
                **({} if occupancy is None else {"occupancy": (axes, occupancy, {"units": "count"})}),
                **{name: ("lumisection", values) for name, values in (times | columns).items()},
                "revision": ("lumisection", table[:, 1]),
                **{name: ("lumisection", values) for name, values in labels.items()},
            },
            coords={
                "lumisection": table[:, 0],
                "depth": np.arange(1, self.geometry.depths + 1),
                "ieta": IETA,
                "iphi": IPHI,
            },
            attrs={"run": run, "source": self.source, "snapshot": self.snapshot, "archive_id": self.archive_id},
        )

    def _labels_of(self, run: int, lumisection: np.ndarray, quality: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of these lumisections, of the kinds that were imported; none of interpolated rows."""
        found: dict[str, np.ndarray] = {}
        if self.labels.golden is not None:
            found["golden"] = self.labels.golden_of(run, lumisection)
        if self.labels.luminosity is not None:
            said = self.labels.luminosity_of(run, lumisection)
            found |= {name: said[name] for name in ("delivered_lumi", "recorded_lumi")}
        interpolated = (quality & Quality.INTERPOLATED) != 0
        for name, values in found.items():
            values[interpolated] = UNKNOWN if name == "golden" else np.nan
        return found


def _merge(size: int, parts: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Columns of `size` rows from parts, each with the places of its rows."""
    merged = {name: np.empty((size, *values.shape[1:]), values.dtype) for name, values in parts[0][1].items()}
    for here, part in parts:
        for name, values in part.items():
            merged[name][here] = values
    return merged


def _files(path: Path) -> list[int]:
    """Sizes in bytes of the files under path."""
    return [file.stat().st_size for file in path.rglob("*") if file.is_file()]


assert np.datetime64("NaT", "ns").view("int64") == NAT
