"""Ingest of an in-process feed: every offset is accounted for, whatever the messages are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import DataLostError
from dqmstream.lumisection import Record, RunStart, RunStop
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import DeadLetter, FolderDeadLetters
from dqmstream.streaming.filer import Filer
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message, Polled, Slice
from dqmstream.streaming.wire import encode
from tests.maps import SOURCE, check_tiling, lumisection, row

FEED = "hcal@cluster.topic"


def as_messages(records: Iterable[Record]) -> list[Message]:
    offsets = count()
    return [Message(0, next(offsets), key, value, headers) for key, value, headers in map(encode, records)]


def run_records(run: int, numbers: Iterable[int]) -> Iterator[Record]:
    yield RunStart(run)
    yield from (lumisection(run, number) for number in numbers)
    yield RunStop(run)


def feed_of(messages: Sequence[Message], size: int = 256) -> InProcessFeed:
    return InProcessFeed(FEED, lambda: iter(messages), max_records=size)


def ingest(archive: Archive, feed: object, **flags: object) -> Ingest:
    letters = FolderDeadLetters(archive.path.with_name("letters"))
    return Ingest(feed, ArchiveWriter(archive), letters, topic="hcal", **flags)  # type: ignore[arg-type]


def run_dry(loop: Ingest) -> None:
    """Step until the feed gives nothing more, then file the rest."""
    loop.step(0)
    while loop.step(0) or loop.held:
        pass
    assert loop.drain()
    loop.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "A", source=SOURCE)


def unnamed(archive: Archive) -> Archive:
    """Another archive without a source: it files no row until many have come."""
    return Archive.create(archive.path.with_name("unnamed"))


def test_what_comes_is_filed_once_and_in_order(archive: Archive) -> None:
    feed = feed_of(as_messages([*run_records(7, range(1, 301)), *run_records(8, range(1, 101))]))
    loop = ingest(archive, feed)
    run_dry(loop)
    head = archive.refresh()
    assert [(s.run, s.lumisections, s.complete) for s in head.runs()] == [(7, 300, "stop"), (8, 100, "stop")]
    np.testing.assert_array_equal(head.run(7)["occupancy"][41, 0], lumisection(7, 42).occupancy)
    assert head.next_offset(FEED, 0) == feed.committed == 404
    assert (loop.counts.rows, loop.counts.dead, loop.waiting) == (400, 0, 0)
    check_tiling(head)


def test_when_the_broker_took_a_message_stands_beside_when_it_was_filed(archive: Archive) -> None:
    sent = [replace(message, timestamp_ms=1_650_000_000_123) for message in as_messages(run_records(7, range(1, 4)))]
    sent[2] = replace(sent[2], timestamp_ms=0)  # a broker that does not say
    run_dry(ingest(archive, feed_of(sent)))
    view = archive.refresh().run(7)
    assert view["produced"].values.tolist()[0] == 1_650_000_000_123_000_000
    assert np.isnat(view["produced"].values).tolist() == [False, True, False]
    assert (view["committed"] > view["produced"])[[0, 2]].all()


def test_a_restart_goes_on_where_the_archive_ends(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 101)))
    first = ingest(archive, feed_of(messages, size=10))
    for _ in range(5):
        first.step(0)
    first.drain()
    first.close()
    assert archive.refresh().next_offset(FEED, 0) == 40
    second = ingest(archive, feed_of(messages))
    run_dry(second)
    assert second.counts.messages == len(messages) - 40
    assert archive.refresh().runs()[0].lumisections == 100
    check_tiling(archive.refresh())


def filer(archive: Archive, **flags: Any) -> Filer:
    letters = FolderDeadLetters(archive.path.with_name("letters"))
    settings: dict[str, Any] = {"topic": "hcal", "max_rows": 1024, "flush_s": 1.0, "crc_required": True, **flags}
    return Filer(FEED, ArchiveWriter(archive), letters, **settings)


def test_under_load_commits_end_at_full_chunks(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 400)))
    small = filer(archive)
    small.begin(0, 0)
    small.take(Slice(0, 0, 21, messages[:21]))
    assert small.file_all() == ({0: 21}, [])
    large = filer(archive, max_rows=100)
    large.begin(0, 21)
    large.take(Slice(0, 21, 400, messages[21:400]))
    large.file_due(more_waits=True)
    rows = archive.refresh().index.logs[(FEED, 0)].rows.size
    assert (rows % 64, large.waiting) == (0, 399 - rows)
    assert large.counts.commits == 5  # of 108 rows, up to a full chunk, then of 64
    large.file_all()
    assert archive.refresh().runs()[0].lumisections == 399


def test_a_row_that_comes_alone_is_filed_at_once_and_the_next_waits_no_longer_than_flush_s(archive: Archive) -> None:
    now = [0.0]
    messages = as_messages(run_records(7, range(1, 6)))
    files = filer(archive, flush_s=2.0, clock=lambda: now[0])
    files.begin(0, 0)
    assert files.due_in(more_waits=False) is None
    files.take(Slice(0, 0, 2, messages[:2]))
    assert files.file_due(more_waits=True) == ({}, [])
    assert files.file_due() == ({0: 2}, [])
    now[0] = 0.5
    files.take(Slice(0, 2, 3, messages[2:3]))
    assert files.due_in(more_waits=False) == 1.5
    now[0] = 1.9
    files.take(Slice(0, 3, 4, messages[3:4]))
    assert files.file_due() == ({}, [])
    now[0] = 2.0
    assert files.file_due() == ({0: 4}, [])
    now[0] = 5.0
    files.take(Slice(0, 4, 5, messages[4:5]))
    assert files.due_in(more_waits=True) == 2.0


def test_a_bad_message_is_kept_with_its_reason_and_the_next_good_one_is_stored(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 6)))
    messages[2] = replace(messages[2], value=b"\x00garbage", timestamp_ms=1_650_000_000_000)
    messages[4] = replace(messages[4], headers=[])
    run_dry(ingest(archive, feed_of(messages)))
    head = archive.refresh()
    assert head.run(7)["lumisection"].values.tolist() == [1, 3, 5]
    control = head.control(FEED, 0)
    dead = control["kind"].values == ControlKind.DEAD
    assert control["offset"].values[dead].tolist() == [2, 4]
    assert control["reason"].values[dead].tolist()[1] == "no header crc32c"
    letter = json.loads((archive.path.with_name("letters") / FEED / "0" / "2.json").read_text())
    assert (letter["topic"], letter["offset"], letter["timestamp_ms"]) == ("hcal", 2, 1_650_000_000_000)
    assert "crc32c" in letter["reason"]
    check_tiling(head)


@pytest.mark.parametrize("n_events", [1500.0, float("nan")])
def test_counts_that_no_lumisection_has_become_a_dead_letter_with_a_plain_reason(archive: Archive, n_events: float) -> None:
    records = [lumisection(7, number, n_events=n_events) for number in range(1, 21)]
    records[4].occupancy[5, 6] = 3e38
    records[9].occupancy[5, 6] = 1600.0
    loop = ingest(archive, feed_of(as_messages(records)))
    run_dry(loop)
    head = archive.refresh()
    gone = [5] if np.isnan(n_events) else [5, 10]  # 1600 is too many only for 1500 events
    assert head.run(7)["lumisection"].values.tolist() == [n for n in range(1, 21) if n not in gone]
    reasons = head.control(FEED, 0)["reason"].values.tolist()
    assert len(reasons) == loop.counts.dead == len(gone)
    assert ("above the 3000000 events" if np.isnan(n_events) else "the lumisection has 1500 events") in reasons[0]
    if len(gone) > 1:
        assert reasons[1] == "occupancy holds 1600, and the lumisection has 1500 events: a channel counts each once"
    check_tiling(head)


def test_dead_letters_are_kept_before_the_commit_that_passes_them(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 3)))
    messages[1] = replace(messages[1], value=b"")
    heads: list[int | None] = []

    class Recorder:
        def put(self, letters: Sequence[DeadLetter]) -> None:
            heads.append(archive.refresh().next_offset(FEED, 0))

        def close(self) -> None: ...

    run_dry(Ingest(feed_of(messages), ArchiveWriter(archive), Recorder(), topic="hcal"))
    assert heads == [None]
    assert archive.refresh().next_offset(FEED, 0) == len(messages)


def test_a_full_disk_for_dead_letters_stops_ingest_before_the_commit(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 3)))
    messages[1] = replace(messages[1], value=b"")

    class Full:
        def put(self, letters: Sequence[DeadLetter]) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    with pytest.raises(OSError, match="No space"):
        run_dry(Ingest(feed_of(messages), ArchiveWriter(archive), Full(), topic="hcal"))
    assert archive.refresh().next_offset(FEED, 0) is None


def test_duplicates_are_counted_and_revisions_flagged(archive: Archive) -> None:
    records = [*run_records(7, [1, 2, 2, 3]), lumisection(7, 3, seed=5)]
    loop = ingest(archive, feed_of(as_messages(records)))
    run_dry(loop)
    assert (loop.counts.rows, loop.counts.duplicates, loop.counts.revisions) == (4, 1, 1)
    assert archive.refresh().run(7)["revision"].values.tolist() == [0, 0, 1]
    check_tiling(archive.refresh())


def test_another_source_becomes_a_dead_letter(archive: Archive) -> None:
    records = [lumisection(7, 1), lumisection(7, 2, source="/Muon#Other"), lumisection(7, 3)]
    run_dry(ingest(archive, feed_of(as_messages(records))))
    head = archive.refresh()
    assert head.run(7)["lumisection"].values.tolist() == [1, 3]
    assert "the source is /Muon#Other" in head.control(FEED, 0)["reason"].values[0]
    check_tiling(head)


def test_offsets_without_a_message_are_holes(archive: Archive) -> None:
    messages = as_messages(run_records(7, range(1, 4)))
    holed = [replace(m, offset=m.offset + 10 * (m.offset >= 2)) for m in messages]

    class Holed(InProcessFeed):
        def poll(self, timeout_s: float) -> Polled:
            polled = super().poll(timeout_s)
            return replace(polled, slices=[Slice(s.partition, s.start, s.until + 3, s.messages) for s in polled.slices])

    run_dry(ingest(archive, Holed(FEED, lambda: iter(holed))))
    head = archive.refresh()
    control = head.control(FEED, 0)
    holes = control["kind"].values == ControlKind.HOLE
    spans = list(zip(control["offset"].values[holes].tolist(), control["until"].values[holes].tolist(), strict=True))
    assert spans == [(2, 12), (15, 18)]
    check_tiling(head)


def test_a_worker_that_was_overtaken_reads_on_from_the_archive(archive: Archive) -> None:
    archive = unnamed(archive)
    messages = as_messages(lumisection(7, number) for number in range(1, 11))
    slow = ingest(archive, feed_of(messages, size=6))
    slow.step(0)
    slow.step(0)  # offsets 0-5 are read, and wait until more agree on a source
    run_dry(ingest(archive, feed_of(messages, size=8), source=SOURCE))  # the other worker files everything
    slow.drain()  # refused, and started again where the archive ends
    run_dry(slow)
    head = archive.refresh()
    assert slow.counts.rows == 0
    assert [(s.lumisections, s.duplicates) for s in head.runs()] == [(10, 0)]
    check_tiling(head)


def test_a_revoked_partition_is_dropped_unfiled(archive: Archive) -> None:
    archive = unnamed(archive)
    messages = as_messages(lumisection(7, number) for number in range(1, 4))

    class Revoking(InProcessFeed):
        def poll(self, timeout_s: float) -> Polled:
            polled = super().poll(timeout_s)
            return polled if polled.assigned or polled.slices else Polled(revoked=[0])

    loop = ingest(archive, Revoking(FEED, lambda: iter(messages)))  # its rows wait until more agree on a source
    run_dry(loop)
    assert (loop.counts.messages, loop.waiting) == (3, 0)
    assert archive.refresh().next_offset(FEED, 0) is None


def test_asking_how_long_nothing_came_changes_nothing(archive: Archive) -> None:
    now = [0.0]
    loop = ingest(archive, feed_of(as_messages(run_records(7, range(1, 4))), size=2), clock=lambda: now[0])
    for _ in range(3):  # the partition, and two times two of its five messages
        now[0] += 1.0
        loop.step(0)
    now[0] += 5.0
    assert (loop.idle_s, loop.idle_s) == (5.0, 5.0)
    loop.step(0)
    assert loop.idle_s == 0.0
    now[0] += 2.0
    loop.step(0)  # all was read
    assert loop.idle_s == 2.0
    assert loop.drain()
    loop.close()


def test_a_feed_that_lost_what_it_had_is_told_loudly(archive: Archive) -> None:
    ArchiveWriter(archive).append(FEED, 0, [row(archive, 7, 1, 0), row(archive, 7, 2, 1)], 0, 2)
    with pytest.raises(DataLostError, match="ends at offset 1, the archive continues at 2"):
        ingest(archive, feed_of(as_messages([lumisection(7, 1)]))).step(0)
