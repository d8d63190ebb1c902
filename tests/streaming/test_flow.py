"""Flow control: with a slow disk memory stays bounded, polling goes on, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming import ingest as ingest_module
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message, Polled
from dqmstream.streaming.wire import encode
from tests.maps import SOURCE, check_tiling, lumisection

FEED = "hcal@cluster.topic"


class SlowDisk(ArchiveWriter):
    """Files nothing until `free` is set."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive)
        self.free = threading.Event()

    def append(self, *arguments: Any, **keywords: Any) -> Any:
        assert self.free.wait(60)
        return super().append(*arguments, **keywords)


class CountedFeed(InProcessFeed):
    """Counts its polls, held or not."""

    polls = 0

    def poll(self, timeout_s: float) -> Polled:
        self.polls += 1
        return super().poll(timeout_s)


def endless() -> Iterator[Message]:
    for offset in count():
        key, value, headers = encode(lumisection(1, offset + 1))
        yield Message(0, offset, key, value, headers)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "A", source=SOURCE)


def loop_over(feed: InProcessFeed, writer: ArchiveWriter, **flags: Any) -> Ingest:
    return Ingest(feed, writer, FolderDeadLetters(writer.archive.path.with_name("L")), topic="hcal", **flags)


def test_a_slow_disk_holds_the_feed_which_is_polled_on(archive: Archive) -> None:
    disk, feed = SlowDisk(archive), CountedFeed(FEED, endless, max_records=16)
    loop = loop_over(feed, disk, max_rows=32)
    while not loop.held:
        loop.step(0.001)
    most, polls = loop.waiting, feed.polls
    assert 128 <= most < 128 + 2 * 16
    for _ in range(50):
        assert loop.step(0.001) == 0
    assert (loop.waiting, feed.polls) == (most, polls + 50)
    disk.free.set()
    while loop.held or loop.counts.rows < 500:
        loop.step(0.001)
        assert loop.waiting <= most
    assert loop.drain()
    loop.close()
    head = archive.refresh()
    assert head.runs()[0].lumisections == loop.counts.rows == loop.counts.messages
    check_tiling(head)


def test_large_messages_are_held_by_their_bytes(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "MAX_WAITING_BYTES", 20 * 2**20)
    disk = SlowDisk(archive)
    noise = bytes(2**20)
    feed = CountedFeed(FEED, lambda: (Message(0, n, b"1", noise) for n in count()), max_records=1)
    loop = loop_over(feed, disk)
    while not loop.held:
        loop.step(0.001)
    assert loop.waiting <= 21
    disk.free.set()
    loop.close()


def test_a_drain_that_takes_too_long_is_told_and_what_is_left_is_read_again(archive: Archive) -> None:
    disk = SlowDisk(archive)
    sent = [next_ for next_, _ in zip(endless(), range(40), strict=False)]
    loop = loop_over(InProcessFeed(FEED, lambda: iter(sent)), disk, flush_s=3600)
    loop.step(0)
    loop.step(0)
    assert not loop.drain(timeout_s=0.05)
    assert loop.waiting == 40
    disk.free.set()
    assert loop.drain()
    loop.close()
    assert archive.refresh().runs()[0].lumisections == 40


def test_what_goes_wrong_while_filing_is_raised_to_the_poller(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArchiveWriter, "append", full)
    loop = loop_over(InProcessFeed(FEED, endless), ArchiveWriter(archive))
    with pytest.raises(OSError, match="No space left"):
        while True:
            loop.step(0.001)
    with pytest.raises(OSError, match="No space left"):  # and again: nothing is filed any more
        loop.drain()
    loop.close()
    assert archive.refresh().offsets() == {}
