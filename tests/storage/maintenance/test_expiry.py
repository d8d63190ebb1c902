"""Old snapshots are dropped by time alone, during data taking, and never at the cost of data taking or of a reader."""

from __future__ import annotations

import os
import queue
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import icechunk
import numpy as np
import pytest
from structlog.testing import capture_logs

from dqmstream.errors import ArchiveError
from dqmstream.storage import clock
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Row
from dqmstream.storage.maintenance.expiry import Expiry
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import check_tiling, row
from tests.scale import scaled

FEED = "f"
KEPT_HOURS = scaled(3, 6)
"""6 is what `keep_snapshots_s` is by default."""


def files_of(archive: Archive) -> int:
    return sum(path.is_file() for path in archive.path.rglob("*"))


def make_older(archive: Archive, seconds: float) -> None:
    """Make all commits so far older."""
    older = {path: path.stat().st_mtime - seconds for path in archive.path.rglob("*")}
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(archive.path)))
    for info in repository.ancestry(branch="main"):
        clock.set_time(archive.path / "snapshots" / info.id, info.written_at, info.written_at - timedelta(seconds=seconds))
    for path, then in older.items():
        os.utime(path, (then, then))


@pytest.mark.timeout(scaled(120, 3600))
def test_the_files_of_weeks_without_stops_are_bounded(tmp_path: Path) -> None:
    """A commit for each lumisection, a removal each hour: of 155 commits, here of 5, and in the long form of a month of 20."""
    hours, in_hour = scaled((16, 5), (720, 20))
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    empty, at, most = np.zeros((1, 64, 72), np.float32), 0, 0
    began: list[float] = []
    for hour in range(hours):
        began.append(time.time())
        for _ in range(in_hour):
            entry = Row(at, 1 + at // 1400, 1 + at % 1400, empty, content=at, source="/a#b")
            writer.append(FEED, 0, [entry], at, at + 1)
            at += 1
        before = files_of(archive)
        if hour >= KEPT_HOURS:
            Archive.open(archive.path).expire(time.time() - began[hour - KEPT_HOURS + 1])
        most = max(most, files_of(archive))
        if hour % 24 == 23 or hour == hours - 1:
            print(f"hour {hour + 1}: {at} commits, {before} files before expiry, {files_of(archive)} after")
    chunks = at / 64 + 14 * (at / 1024 + 1)  # of the maps and of the columns, which are data and stay
    assert most < 15 * (KEPT_HOURS + 1) * in_hour + 2 * chunks + 60
    assert Archive.open(archive.path).runs()[-1].last_lumisection == 1 + (at - 1) % 1400
    check_tiling(archive.refresh())


def test_what_was_the_newest_within_the_time_stays_for_its_readers(tmp_path: Path) -> None:
    """Even if it was committed long before: nothing came for hours, and a reader was refreshed a second ago."""
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    snapshots = [writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1).snapshot for k in range(4)]
    make_older(archive, 10 * 3600)
    pinned = Archive.open(archive.path)
    ArchiveWriter(pinned).append(FEED, 0, [row(archive, 1, 5, 4)], 4, 5)
    assert pinned.expire(6 * 3600) >= 2
    pinned.tag("read")
    assert pinned.snapshot == snapshots[3]
    assert Archive.open(archive.path, "read").run(1)["lumisection"].values.tolist() == [1, 2, 3, 4]
    with pytest.raises(ArchiveError, match="has no snapshot"):
        Archive.open(archive.path, snapshots[2])


class Calls:
    """Replaces `Archive.expire`, and reports each call when it has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: list[BaseException]) -> None:
        self.ended: queue.SimpleQueue[int | str] = queue.SimpleQueue()
        real = Archive.expire

        def expire(archive: Archive, keep_s: float) -> int:
            try:
                if failures:
                    raise failures.pop(0)
                found = real(archive, 0.0)
            except BaseException as error:
                self.ended.put(type(error).__name__)
                raise
            self.ended.put(found)
            return found

        monkeypatch.setattr(Archive, "expire", expire)


def test_a_failure_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(archive)
    for k in range(8):
        writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
    failures = [icechunk.IcechunkError("no"), OSError(28, "No space left on device"), ArchiveError("A is gone")]
    calls = Calls(monkeypatch, list(failures))
    with capture_logs() as told:
        expiry = Expiry(archive.path, 600, every_s=3600, retry_s=0.01)
        assert [calls.ended.get(timeout=30) for _ in failures] == [type(failure).__name__ for failure in failures]
        dropped = calls.ended.get(timeout=30)
        expiry.close()
    assert isinstance(dropped, int) and dropped > 5
    assert [line["log_level"] for line in told] == ["error"] * 3 + ["info"]
    assert all("tried again" in line["event"] for line in told[:3])
    check_tiling(Archive.open(archive.path))


def test_expiry_goes_by_time_from_the_start_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, so that a service that is restarted within the hour expires too; then every every_s."""
    archive = Archive.create(tmp_path / "A")
    calls = Calls(monkeypatch, [])
    expiry = Expiry(archive.path, 600, every_s=0.01)
    first = calls.ended.get(timeout=30)
    writer = ArchiveWriter(archive)
    for k in range(8):
        writer.append(FEED, 0, [row(archive, 1, k + 1, k)], k, k + 1)
    began = datetime.now(UTC)
    dropped = 0
    while dropped < 8 and datetime.now(UTC) - began < timedelta(seconds=60):
        found = calls.ended.get(timeout=30)
        assert isinstance(found, int)
        dropped += found
    expiry.close()
    assert first == 0 and dropped >= 8
    assert Archive.open(archive.path).run(1).sizes["lumisection"] == 8


def test_a_clock_that_is_set_ahead_takes_no_snapshot_from_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive.create(tmp_path / "A")
    kept: queue.SimpleQueue[float] = queue.SimpleQueue()

    def expire(archive: Archive, keep_s: float) -> int:
        kept.put(keep_s)
        return 0

    monkeypatch.setattr(Archive, "expire", expire)
    expiry = Expiry(archive.path, 600, every_s=0.01)
    first, real = kept.get(timeout=30), time.time
    monkeypatch.setattr("dqmstream.storage.maintenance.expiry.time.time", lambda: real() + 86_400)
    while (later := kept.get(timeout=30)) < 86_400:
        pass
    expiry.close()
    assert first == pytest.approx(600, abs=30)
    assert later == pytest.approx(87_000, abs=30)
