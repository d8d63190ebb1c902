"""A failure of the storage is one line with the exit code of the README, and no data are lost."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import ArchiveError
from dqmstream.learners.stream.state_folder import Identity, StateFolder
from dqmstream.service.consume import consume
from dqmstream.settings import load_settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control
from dqmstream.storage.images.archive import ImageArchive, import_images
from dqmstream.storage.layout import IMPORT_FEED, ControlKind
from dqmstream.storage.maintenance.export import export
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.message import Polled
from tests.commandline import Command, forks, told
from tests.disks import SmallDisk, remount_read_only
from tests.layouts import write_hdf5
from tests.maps import check_tiling, counts, row, rows, write_run
from tests.promises.killed import FEED, messages
from tests.promises.test_kills import assert_equals_oracle
from tests.runs import simulated_archive

FULL = r"(the disk is full: make room|a file would be larger than this process may write: raise the limit)"


def in_a_child(function: Callable[..., None], *arguments: object) -> None:
    """Run it in its own process, whose mounts end with it."""
    process = forks().Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


class _Filling(InProcessFeed):
    """A feed that gives some messages, and the others once one was filed and the disk is full."""

    disk: SmallDisk
    until = 40
    filled = False

    def poll(self, timeout_s: float) -> Polled:
        if self._position >= self.until and not self.filled:
            if not self.committed:
                return Polled()
            self.disk.fill(4096)
            self.filled = True
        return super().poll(timeout_s)


def _serve(disk: SmallDisk, folder: Path, *, fill: bool) -> int:
    """Run the service to the end of the feed, or until the disk is full; returns what Kafka was told."""
    sent = messages(1, 80)
    feed = _Filling(FEED, lambda: iter(sent), max_records=20)
    feed.disk, feed.filled = disk, not fill
    settings = load_settings(archive=disk.folder / "A", flush_s=0.01, max_rows=20)
    letters = FolderDeadLetters(folder / "letters")
    archive = Archive.open_or_create(settings.need("archive"))
    try:
        consume(archive, feed, letters, settings, topic="t", learn=False, until_idle_s=0.2)
    except ArchiveError as error:
        assert fill
        assert str(error).startswith(f"{disk.folder / 'A'} cannot be written: ") and "\n" not in str(error)
    else:
        assert not fill
    return int(feed.committed)


def _fill_and_make_room(folder: Path) -> None:
    disk = SmallDisk(folder / "disk", 16 << 20)
    archive = disk.folder / "A"
    told = _serve(disk, folder, fill=True)
    sent = messages(1, 80)
    filed = assert_equals_oracle(archive, folder / "letters", sent)
    assert 0 < told <= filed < len(sent)  # Kafka was told of nothing that is not there
    with pytest.raises(ArchiveError, match=FULL):  # and again, as a supervisor would start it
        ArchiveWriter(Archive.open(archive)).append(
            FEED, 0, rows(Archive.open(archive), 9, range(1, 200), filed), filed, filed + 199
        )
    disk.make_room()
    assert _serve(disk, folder, fill=False) == len(sent) == assert_equals_oracle(archive, folder / "letters", sent)


def test_a_full_disk_ends_the_service_with_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    in_a_child(_fill_and_make_room, tmp_path)


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two short runs."""
    return simulated_archive(tmp_path_factory.mktemp("source"), runs=2).path


def _on_a_disk(disk: Path, archive: Path, free: int | None) -> None:
    """Have the archive on a disk with so many bytes free, or, with None, on a read-only one."""
    small = SmallDisk(disk, 32 << 20)
    shutil.copytree(archive, disk / "A")
    if free is None:
        remount_read_only(disk)
    else:
        small.fill(free)


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ("import RUN --archive A", 8192),
        ("learn --archive A --strategy gain_map", 300_000),
        ("archive compact --archive A", 4096),
        ("import RUN --archive A", None),
        ("import RUN --archive B", None),
        ("learn --archive A --strategy gain_map", None),
        ("archive expire --archive A --keep-s 0", None),
    ],
)
def test_commands_tell_of_a_full_or_read_only_disk(tmp_path: Path, learnable: Path, words: str, free: int | None) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if free is None and not _may_mount(tmp_path / "try"):
        pytest.skip("this machine permits no mount, so no disk can be read-only for root")
    path = write_run(tmp_path, 9, counts(9, 8))
    places = {"A": disk / "A", "B": disk / "B", "RUN": path}
    arguments = [places.get(word, word) for word in words.split()]
    command = Command(*arguments, before=functools.partial(_on_a_disk, disk, learnable, free))
    line = told(_done(command), 5)
    assert str(disk) in line
    assert "make room" in line or "raise the limit" in line if free is not None else "the disk is read-only" in line


def _done(command: Command) -> subprocess.CompletedProcess[str]:
    code = command.wait(120)
    return subprocess.CompletedProcess([], code, *command.communicate())


def _may_mount(folder: Path) -> bool:
    process = forks().Process(target=_try_to_mount, args=(folder,))
    process.start()
    process.join()
    return process.exitcode == 0


def _try_to_mount(folder: Path) -> None:
    raise SystemExit(not SmallDisk(folder).is_mounted)


def _damage(folder: Path, how: str) -> None:
    for file in folder.iterdir():
        if how == "missing":
            file.unlink()
        else:
            data = file.read_bytes()
            file.write_bytes(data[:-20] + bytes(20))


def _new_feed(archive: Archive, out: Path) -> object:
    return ArchiveWriter(archive).append("g", 0, [row(archive, 1, 12, 0)], 0, 1)


OF_MAPS: Sequence[tuple[str, Callable[[Archive, Path], object]]] = (
    ("run", lambda archive, out: archive.run(1).load()),
    ("export", lambda archive, out: export(archive, out)),
    ("append", lambda archive, out: ArchiveWriter(archive).append("f", 0, [row(archive, 1, 11, 11)], 11, 12)),
)
OF_TABLES: Sequence[tuple[str, Callable[[Archive, Path], object]]] = (
    ("runs", lambda archive, out: archive.runs()),
    ("control", lambda archive, out: archive.control("f", 0)),
    ("imported", lambda archive, out: archive.imported()),
    ("append to a new feed", _new_feed),
)
"""Small columns lie in the manifests."""


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("kind", ["chunks", "manifests"])
def test_a_chunk_or_manifest_that_is_missing_or_damaged_is_told(tmp_path: Path, kind: str, how: str) -> None:
    made = Archive.create(tmp_path / "A")
    entries = [*rows(made, 1, range(1, 11), 0), Control(10, 11, ControlKind.STOP, 1)]
    ledger: dict[str, str | int] = {"sha256": "0" * 64, "run": 2, "name": "x", "rows": 10, "offset": 0}
    imported = [Control(0, 1, ControlKind.START, 2), *rows(made, 2, range(1, 11), 1), Control(11, 12, ControlKind.STOP, 2)]
    ArchiveWriter(made).append("f", 0, entries, 0, 11)
    ArchiveWriter(made).append(IMPORT_FEED, 0, imported, 0, 12, ledger)
    _damage(tmp_path / "A" / kind, how)
    for name, read in (*OF_MAPS, *(OF_TABLES if kind == "manifests" else ())):
        with pytest.raises(ArchiveError, match=rf"^{tmp_path}/A cannot be (read|written): .*archive verify") as error:
            read(Archive.open(tmp_path / "A"), tmp_path / "out.zarr")
        line = str(error.value)
        assert "\n" not in line and how in line, name
    assert Archive.open(tmp_path / "A").next_offset("f", 0) == 11  # and nothing was filed


def test_an_archive_of_images_tells_of_a_missing_chunk(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "e.hdf5", 20)
    import_images([tmp_path / "e.hdf5"], tmp_path / "I")
    archive = ImageArchive.open(tmp_path / "I")
    _damage(tmp_path / "I" / "chunks", "missing")
    with pytest.raises(ArchiveError, match=rf"^{tmp_path}/I cannot be read: .*is missing"):
        archive.read(np.arange(3))


def test_a_filesystem_that_keeps_no_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 1, range(1, 4), 0), 0, 3)

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    identity = Identity("gain_map", 0, 0, 0, archive.archive_id)
    for act in (
        lambda: ArchiveWriter(archive).append("f", 0, rows(archive, 1, range(4, 6), 3), 3, 5),
        lambda: archive.expire(0),
        lambda: export(archive.refresh(), tmp_path / "out.zarr"),
        lambda: Archive.create(tmp_path / "B"),
        lambda: StateFolder(tmp_path / "S", identity),
    ):
        with pytest.raises(ArchiveError, match="cannot be locked: its filesystem keeps no locks"):
            act()
    monkeypatch.undo()
    assert Archive.open(tmp_path / "A").run(1).sizes["lumisection"] == 3
    check_tiling(Archive.open(tmp_path / "A"))
