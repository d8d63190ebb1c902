"""Disorder: lumisections come late, twice, revised or interleaved, ingest restarts anywhere, and the archive is right.

A plain dictionary is the oracle: what each lumisection's revisions are, what was a duplicate, and how each run ended.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmstream.lumisection import Record, RunStart, RunStop
from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import DeadLetter, FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.message import Message, Polled, Slice
from dqmstream.streaming.wire import encode
from tests.maps import SOURCE, check_tiling, lumisection

FEED = "hcal@cluster.topic"
SCALE = 20 if os.environ.get("DQMSTREAM_SOAK") == "1" else 1


@dataclass(frozen=True)
class Event:
    """A message of the data acquisition. what: start, stop, or the seed of a lumisection's content."""

    run: int
    what: str | int
    number: int = 0

    @property
    def record(self) -> Record:
        if self.what == "start":
            return RunStart(self.run)
        if self.what == "stop":
            return RunStop(self.run)
        return lumisection(self.run, self.number, seed=int(self.what))


def data(run: int, numbers: Iterable[int], seed: int = 0) -> list[Event]:
    return [Event(run, seed, number) for number in numbers]


def whole(run: int, numbers: Iterable[int]) -> list[Event]:
    return [Event(run, "start"), *data(run, numbers), Event(run, "stop")]


@dataclass
class Oracle:
    """The expected archive after events in the order of their filing."""

    revisions: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Seeds of (run, lumisection), in the order of filing."""

    duplicates: dict[int, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    appeared: dict[int, dict[int, bool]] = field(default_factory=dict)
    """By partition, the runs that began there, in order, and whether a row of them lies there."""

    def file(self, event: Event, partition: int = 0) -> None:
        appeared = self.appeared.setdefault(partition, {})
        if event.what == "stop":
            self.stopped.add(event.run)
        elif event.what == "start":
            appeared.setdefault(event.run, False)
        elif event.what in (known := self.revisions.setdefault((event.run, event.number), [])):
            self.duplicates[event.run] = self.duplicates.get(event.run, 0) + 1
        else:
            known.append(int(event.what))
            appeared[event.run] = True

    def complete(self, run: int) -> str:
        if run in self.stopped:
            return "stop"
        ended = [list(runs)[-1] != run for runs in self.appeared.values() if runs.get(run)]
        return "next_run" if any(ended) else ""

    def summaries(self) -> dict[int, tuple[int, int, int, str]]:
        """Lumisections, rows, duplicates and end of each run."""
        found = {}
        for run in {run for run, _ in self.revisions}:
            seeds = [seeds for (of, _), seeds in self.revisions.items() if of == run]
            found[run] = (len(seeds), sum(map(len, seeds)), self.duplicates.get(run, 0), self.complete(run))
        return found


def check(archive: Archive, oracle: Oracle) -> None:
    """Assert that the archive holds exactly what the oracle says."""
    check_tiling(archive)
    summaries = {s.run: (s.lumisections, s.rows, s.duplicates, s.complete) for s in archive.runs()}
    assert summaries == oracle.summaries()
    for run in summaries:
        view = archive.run(run)
        newest = {number: seeds for (of, number), seeds in sorted(oracle.revisions.items()) if of == run}
        assert view["lumisection"].values.tolist() == list(newest)
        assert view["revision"].values.tolist() == [len(seeds) - 1 for seeds in newest.values()]
        assert (view["quality"].values & 2 > 0).tolist() == [len(seeds) > 1 for seeds in newest.values()]
        for place, (number, seeds) in enumerate(newest.items()):
            assert (view["occupancy"].values[place, 0] == lumisection(run, number, seed=seeds[-1]).occupancy).all()


class NoLetters:
    """Everything here can be stored."""

    def put(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters[0].reason)

    def close(self) -> None: ...


class Scripted:
    """A feed of several partitions that returns one slice a poll: (partition, messages), in the order of the script."""

    name = FEED
    exhausted = True

    def __init__(self, script: Sequence[tuple[int, int]], messages: Mapping[int, Sequence[Message]]) -> None:
        self._script = iter(script)
        self._messages = messages
        self._position: dict[int, int] = {}
        self._announced = False

    def poll(self, timeout_s: float) -> Polled:
        if not self._announced:
            self._announced = True
            return Polled(assigned=sorted(self._messages))
        for partition, count in self._script:
            start = self._position[partition]
            until = self._position[partition] = start + count
            return Polled(slices=[Slice(partition, start, until, self._messages[partition][start:until])])
        return Polled()

    def start(self, partition: int, offset: int | None) -> int:
        self._position[partition] = offset or 0
        return offset or 0

    def hold(self, held: bool) -> None: ...

    def commit(self, offsets: Mapping[int, int]) -> None: ...

    def close(self) -> None: ...


def as_messages(events: Sequence[Event], partition: int = 0) -> list[Message]:
    return [Message(partition, offset, *encode(event.record)) for offset, event in enumerate(events)]


def ingest(archive: Archive, feed: object, max_rows: int = 1024) -> Ingest:
    return Ingest(feed, ArchiveWriter(archive), NoLetters(), topic="hcal", max_rows=max_rows)  # type: ignore[arg-type]


def file_all(archive: Archive, events: Sequence[Event], kept: Sequence[int] = ()) -> Archive:
    """Ingest the events of one partition. kept: for each number, a worker that ends after so many polls without a drain."""
    messages = as_messages(events)
    for polls in kept:
        loop = ingest(archive, InProcessFeed(FEED, lambda: iter(messages), max_records=3), max_rows=2)
        for _ in range(polls):
            loop.step(0)
        loop.close()
    loop = ingest(archive, InProcessFeed(FEED, lambda: iter(messages)))
    loop.step(0)
    while loop.step(0):
        pass
    assert loop.drain()
    loop.close()
    return archive.refresh()


SCENARIOS = {
    "in order": [*whole(1, range(1, 6)), *whole(2, range(1, 4))],
    "out of order": [Event(1, "start"), *data(1, [3, 1, 5, 2, 4]), Event(1, "stop")],
    "late, behind the stop": [*whole(1, [1, 2, 4]), *data(1, [3])],
    "late, behind the next run": [*whole(1, [1, 2]), *whole(2, [1, 2]), *data(1, [3])],
    "twice": [*data(1, [1, 2]), *data(1, [1, 2]), *data(1, [2])],
    "revised": [*data(1, [1, 2]), *data(1, [2], seed=1), *data(1, [2], seed=2)],
    "revised, and then the first one again": [*data(1, [1]), *data(1, [1], seed=1), *data(1, [1])],
    "revised behind the stop": [*whole(1, [1, 2]), *data(1, [1], seed=1)],
    "a stop before the last data": [Event(1, "start"), *data(1, [1]), Event(1, "stop"), *data(1, [2, 3])],
    "a stop alone, and a start alone": [Event(1, "stop"), Event(2, "start"), *data(3, [1])],
    "no start": [*data(1, [1, 2]), Event(1, "stop")],
    "no stop": [Event(1, "start"), *data(1, [1, 2]), *whole(2, [1])],
    "neither": [*data(1, [1, 2]), *data(2, [1])],
    "a start of the next run ends one": [*data(1, [1, 2]), Event(2, "start")],
    "two runs interleaved": [e for pair in zip(whole(1, range(1, 6)), whole(2, range(1, 6)), strict=True) for e in pair],
    "interleaved without a stop": [*data(1, [1]), *data(2, [1]), *data(1, [2]), *data(2, [2])],
    "a run number that goes back": [*whole(9, [1, 2]), *whole(3, [1, 2]), *data(4, [1])],
    "a run that is started again": [*whole(1, [1, 2]), *whole(1, [2, 3])],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_disorder_that_detectors_know(name: str, tmp_path: Path) -> None:
    oracle = Oracle()
    for event in SCENARIOS[name]:
        oracle.file(event)
    check(file_all(Archive.create(tmp_path / "A", source=SOURCE), SCENARIOS[name]), oracle)


EVENTS = st.builds(
    Event,
    run=st.integers(1, 3),
    what=st.sampled_from(["start", "stop"]) | st.integers(0, 2) | st.just(0),
    number=st.integers(1, 4),
)


@pytest.fixture(scope="module")
def template() -> Iterable[Path]:
    """An empty archive to copy, which is faster than creating one."""
    folder = Path(tempfile.mkdtemp())
    Archive.create(folder / "A", source=SOURCE)
    yield folder
    shutil.rmtree(folder)


def fresh(template: Path, counter: itertools.count[int] = itertools.count()) -> Archive:  # noqa: B008 - one for all
    path = template / f"B{next(counter)}"
    shutil.copytree(template / "A", path)
    return Archive.open(path)


@pytest.mark.timeout(120 * SCALE)
@settings(max_examples=20 * SCALE, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=25), kept=st.lists(st.integers(1, 8), max_size=3))
def test_any_order_with_restarts_gives_what_a_dictionary_gives(template: Path, events: list[Event], kept: list[int]) -> None:
    oracle = Oracle()
    for event in events:
        oracle.file(event)
    check(file_all(fresh(template), events, kept), oracle)


@pytest.mark.timeout(120 * SCALE)
@settings(max_examples=12 * SCALE, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 1), st.lists(EVENTS, min_size=1, max_size=4)), min_size=1, max_size=8),
    restarts=st.sets(st.integers(0, 7), max_size=3),
)
def test_a_run_in_two_partitions_is_one_run(template: Path, pieces: list[tuple[int, list[Event]]], restarts: set[int]) -> None:
    """As when the producer's partitioner was changed. The row filed last is the newest, in whichever partition."""
    archive, oracle = fresh(template), Oracle()
    partitions: dict[int, list[Event]] = {0: [], 1: []}
    for partition, events in pieces:
        partitions[partition] += events
    messages = {partition: as_messages(events, partition) for partition, events in partitions.items()}
    script = [(partition, len(events)) for partition, events in pieces]
    loop = ingest(archive, Scripted(script, messages))
    loop.step(0)
    for place, (partition, events) in enumerate(pieces):
        loop.step(0)
        assert loop.drain()
        for event in events:
            oracle.file(event, partition)
        if place in restarts:
            loop.close()
            loop = ingest(archive, Scripted(script[place + 1 :], messages))
            loop.step(0)
    loop.close()
    check(archive.refresh(), oracle)


def test_two_workers_that_take_turns_agree(tmp_path: Path) -> None:
    """Each has its own index of the stored rows; rows that the other filed are recognised as duplicates."""
    archive, oracle = Archive.create(tmp_path / "A", source=SOURCE), Oracle()
    pieces = {0: [*data(1, [1, 2]), *data(1, [3])], 1: [*data(1, [2, 3]), *data(1, [3], seed=1)]}
    messages = {partition: as_messages(events, partition) for partition, events in pieces.items()}
    workers = [ingest(archive, Scripted([(p, 2), (p, 1)], {p: messages[p]})) for p in (0, 1)]
    for worker in workers:
        worker.step(0)
    for place in (0, 2):
        for partition, worker in enumerate(workers):
            worker.step(0)
            assert worker.drain()
            for event in pieces[partition][place : place + 2]:
                oracle.file(event, partition)
    for worker in workers:
        worker.close()
    assert sum(worker.counts.duplicates for worker in workers) == sum(oracle.duplicates.values()) == 2
    check(archive.refresh(), oracle)


@pytest.mark.kafka
def test_disorder_through_a_broker_with_a_restart(bootstrap: str, topic: str, tmp_path: Path) -> None:
    """All scenarios one after another, each with its own runs, on two partitions; the worker is restarted in between."""
    create_topic(bootstrap, topic, 2)
    events = [
        Event(10 * place + event.run, event.what, event.number)
        for place, scenario in enumerate(SCENARIOS.values(), start=1)
        for event in scenario
    ]
    sender = KafkaSender(bootstrap, topic)
    for event in events:
        sender.send(*encode(event.record))
    sender.close()
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    counts = []
    for most in (len(events) // 3, len(events)):
        feed = KafkaFeed(bootstrap, topic, "group", max_records=10)
        loop = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(tmp_path / "L"), topic=topic, max_rows=7)
        offsets = archive.refresh().offsets()
        begun = sum(following for partitions in offsets.values() for _, following in partitions.values())
        while loop.counts.messages + begun < most:
            loop.step(0.2)
        assert loop.drain()
        loop.close()
        feed.close()
        counts.append(loop.counts)
    head, oracle = archive.refresh(), Oracle()
    place: dict[int, int] = {}
    for (name, partition), log in head.index.logs.items():
        runs = [*log.rows["run"].tolist(), *head.control(name, partition)["run"].values.tolist()]
        place |= dict.fromkeys(runs, partition)
    for event in events:
        oracle.file(event, place[event.run])
    assert set(place.values()) == {0, 1}
    check(head, oracle)
    assert sum(c.rows for c in counts) == sum(rows for _, rows, _, _ in oracle.summaries().values())
    assert sum(c.duplicates for c in counts) == sum(oracle.duplicates.values())
    assert sum(c.dead for c in counts) == 0
