"""A clock that was set back stops nothing: commits wait for a short lead, and move times back for a long one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import icechunk
import pytest
import zarr
from structlog.testing import capture_logs

from dqmstream.cli.status import describe_status
from dqmstream.errors import ArchiveError
from dqmstream.storage import clock
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.maintenance.verify import verify
from dqmstream.storage.status import archive_status
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from tests.maps import check_tiling, counts, row, write_run
from tests.promises.killed import messages

FEED = "f"
HISTORY = 6


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """One with a history of `HISTORY` commits."""
    made = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(made)
    for k in range(HISTORY - 1):
        writer.append(FEED, 0, [row(made, 1, k + 1, k)], k, k + 1)
    return made.refresh()


def set_ahead(archive: Archive, seconds: float, commits: int) -> None:
    """Give the newest commits the times of a clock that was so far ahead."""
    for info in list(_history(archive))[:commits]:
        clock.set_time(archive.path / "snapshots" / info.id, info.written_at, info.written_at + timedelta(seconds=seconds))


def _history(archive: Archive) -> Iterator[icechunk.SnapshotInfo]:
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(archive.path)))
    return repository.ancestry(branch="main")


def assert_times_increase(archive: Archive) -> None:
    times = [info.written_at for info in _history(archive)]
    assert all(later > earlier for later, earlier in pairwise(times)), times
    assert times[0] <= datetime.now(UTC)


def test_icechunk_itself_refuses_a_commit_before_its_parent(archive: Archive) -> None:
    """The reason for `storage.clock`: if this test fails, Icechunk no longer needs it."""
    set_ahead(archive, 3600, 1)
    session = Archive.open(archive.path).writable_session()
    zarr.open_group(session.store, mode="r+").attrs["source"] = "/a#b"
    with pytest.raises(icechunk.IcechunkError, match="timestamp ordering"):
        session.commit("later")


@pytest.mark.parametrize("commits", [1, 3, HISTORY + 1])
def test_commits_go_on_when_the_clock_was_a_day_ahead(archive: Archive, commits: int) -> None:
    """Also of a writer that had read the newest snapshot's time before it was moved; each row once."""
    before = {info.id: info.written_at for info in _history(archive)}
    set_ahead(archive, 86_400, commits)
    writer, other = (ArchiveWriter(Archive.open(archive.path)) for _ in range(2))
    with capture_logs() as told:
        writer.append(FEED, 0, [row(archive, 1, 6, 5)], 5, 6)
        other.append(FEED, 1, [row(archive, 2, 1, 0)], 0, 1)
        writer.append(FEED, 0, [row(archive, 1, 7, 6)], 6, 7)
    assert [(line["event"].split(":")[0], line["commits"]) for line in told] == [("the clock was set back", commits)]
    head = Archive.open(archive.path)
    assert head.run(1)["lumisection"].values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert verify(head) == []
    check_tiling(head)
    assert_times_increase(head)
    for info in _history(head):  # what was ahead by a day is, to the second, what it would have been
        if info.id in before:
            assert abs((info.written_at - before[info.id]).total_seconds()) < 2
    assert head.at(archive.snapshot).run(1)["lumisection"].values.tolist() == [1, 2, 3, 4, 5]
    assert head.expire(0) > 0
    assert Archive.open(archive.path).run(1).sizes["lumisection"] == 7


def test_status_tells_that_the_clock_is_behind(archive: Archive) -> None:
    assert archive_status(Archive.open(archive.path))["clock_behind_s"] == 0
    set_ahead(archive, 3600, 1)
    status = archive_status(Archive.open(archive.path))
    assert 3590 < status["clock_behind_s"] <= 3600
    told = " ".join(str(part) for part in describe_status({**status, "learners": {}}))
    assert re.search(r"the clock of this machine is 3[56]\d\d s behind the newest commit", told)


def test_a_short_lead_is_waited_for_and_told_once(archive: Archive) -> None:
    set_ahead(archive, 1.0, 1)
    times = [info.written_at for info in _history(archive)]
    writer = ArchiveWriter(Archive.open(archive.path))
    with capture_logs() as told:
        for k in (5, 6):
            writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
    assert len(told) == 1 and "commits wait" in told[0]["event"]
    history = [info.written_at for info in _history(archive)]
    assert history[2:] == times and history[0] > history[1] > times[0]


def test_labels_imports_and_compaction_go_on_too(archive: Archive, tmp_path: Path) -> None:
    path = write_run(tmp_path / "files", 9, counts(9, 3))
    for k, act in enumerate((
        lambda: import_files([path], lambda: Archive.open(archive.path), dtype=archive.dtype, depths=1),
        lambda: Archive.open(archive.path).compact(0),
    )):  # fmt: skip
        set_ahead(archive, 86_400 * (k + 1), 1)
        act()
        assert_times_increase(archive)
    assert Archive.open(archive.path).run(9).sizes["lumisection"] == 3


def test_the_service_files_on_behind_a_clock_that_was_ahead(archive: Archive, tmp_path: Path) -> None:
    set_ahead(archive, 7 * 86_400, 2)
    sent = messages(1, 20)
    feed = InProcessFeed("hcal", lambda: iter(sent))
    loop = Ingest(feed, ArchiveWriter(Archive.open(archive.path)), FolderDeadLetters(tmp_path / "L"), topic="hcal")
    while not feed.exhausted:
        loop.step(0.01)
    assert loop.drain()
    loop.close()
    assert feed.committed == len(sent)
    assert_times_increase(archive)


def test_a_clock_that_was_never_set_is_told_and_changes_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    set_ahead(archive, 3600, 1)
    before = [(info.id, info.written_at) for info in _history(archive)]
    monkeypatch.setattr("dqmstream.storage.clock.EARLIEST_NS", time.time_ns() + 10**15)
    with pytest.raises(ArchiveError, match=r"A cannot be written: the clock says \d{4}-.*set the clock"):
        ArchiveWriter(Archive.open(archive.path)).append(FEED, 0, [row(archive, 1, 6, 5)], 5, 6)
    assert [(info.id, info.written_at) for info in _history(archive)] == before


def test_a_snapshot_of_another_format_is_left_as_it_is(archive: Archive) -> None:
    set_ahead(archive, 3600, 1)
    file = archive.path / "snapshots" / archive.snapshot
    data = bytearray(file.read_bytes())
    for place, value in ((36, 2), (50, data[50] ^ 255)):  # the version; damage
        damaged = data.copy()
        damaged[place] = value
        file.write_bytes(damaged)
        with pytest.raises(ArchiveError, match=f"{archive.snapshot} is of a commit that the clock.*cannot be given"):
            clock.set_time(file, datetime.now(UTC), datetime.now(UTC))
        assert file.read_bytes() == damaged


SHIFTED = """
import mmap, os, sys
from pathlib import Path
from dqmstream.storage.archive import Archive
from dqmstream.storage.clock import ClockSetBack
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import row

shift = mmap.mmap(os.open(os.environ["CLOCK_SHIFT"], os.O_RDWR), 8)

def set_shift(seconds):
    shift[:8] = int(seconds).to_bytes(8, "little", signed=True)

archive = Archive.create(Path(sys.argv[1]))
writer = ArchiveWriter(archive)
at = 0
for seconds in map(int, sys.argv[2:]):
    set_shift(seconds)
    for _ in range(2):
        writer.append("f", 0, [row(archive, 1, at + 1, at)], at, at + 1)
        at += 1

def parts():
    global at
    yield [row(archive, 1, at + 1, at)]
    set_shift(-286_400)  # while a commit is made
    yield [row(archive, 1, at + 2, at + 1)]

for attempt in range(2):
    try:
        writer.append_parts("f", 0, parts(), at, at + 2)
        break
    except ClockSetBack as error:
        print(error)
print(len(archive.refresh().run(1).lumisection), attempt)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to shift the clock of a process with")
def test_a_process_whose_clock_jumps_files_everything(tmp_path: Path) -> None:
    """Icechunk sees the shifted clock, as it would a machine's: ahead by a day, right, behind, ahead for ten seconds, ..."""
    shim, shift = tmp_path / "shift.so", tmp_path / "shift"
    source = Path(__file__).parents[1] / "clock_shift.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source], check=True)
    shift.write_bytes(bytes(8))
    env = os.environ | {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(shift)}
    jumps = ("86400", "0", "-3600", "1", "0", "-86400")
    done = subprocess.run(
        [sys.executable, "-c", SHIFTED, str(tmp_path / "A"), *jumps], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "14 1"
    assert sum("the clock was set back by 200000 s while a commit was made" in line for line in lines) == 1
    head = Archive.open(tmp_path / "A")
    assert head.run(1)["lumisection"].values.tolist() == list(range(1, 15))
    assert verify(head) == []
    check_tiling(head)
