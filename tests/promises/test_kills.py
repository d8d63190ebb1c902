"""README: a kill at any step loses nothing and repeats nothing; rows are on the disk before offsets are committed to Kafka."""

from __future__ import annotations

import itertools
import json
import random
import signal
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
from streaming_data_types.dataarray_da00 import deserialise_da00

from dqmstream.errors import ArchiveError
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.locks import Lock
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import DeadLetter, FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message
from tests.maps import SOURCE, check_tiling, lumisection
from tests.promises.killed import BAD_EVERY, FEED, STEPS, draw, exit_code_of_writer, messages
from tests.scale import scaled

KILLS = scaled(60, 500)
RUNS, LENGTH = 3, 30


def assert_equals_oracle(archive: Path, letters: Path, sent: Sequence[Message]) -> int:
    """The archive holds exactly what it should of every offset below next_offset. Returns next_offset."""
    if not Archive.exists(archive):
        return 0
    head = Archive.open(archive)
    until = head.next_offset(FEED, 0) or 0
    filed = [message for message in sent[:until] if message.offset % BAD_EVERY != BAD_EVERY - 1]
    of_run: dict[int, list[int]] = {}
    duplicates = 0
    for message in filed:
        assert message.value is not None
        if message.value[4:8] == b"da00":
            told = {variable.name: variable.data for variable in deserialise_da00(message.value).data}
            numbers = of_run.setdefault(told["run"], [])
            duplicates += told["lumisection"] in numbers
            numbers += [told["lumisection"]] * (told["lumisection"] not in numbers)
    check_tiling(head)
    if not until:
        return 0
    kinds = Counter(head.control(FEED, 0)["kind"].values.tolist())
    dead = [message.offset for message in sent[:until] if message.offset % BAD_EVERY == BAD_EVERY - 1]
    assert (kinds[ControlKind.DUPLICATE], kinds[ControlKind.DEAD]) == (duplicates, len(dead))
    assert sum(kinds.values()) + sum(map(len, of_run.values())) == until  # each offset once
    for offset in dead:
        assert (letters / FEED / "0" / f"{offset}.json").exists()
    assert {s.run: s.rows for s in head.runs()} == {run: len(numbers) for run, numbers in of_run.items()}
    for run in of_run:
        view = head.run(run)
        assert view["lumisection"].values.tolist() == of_run[run]
        for place, number in enumerate(of_run[run]):
            np.testing.assert_array_equal(view["occupancy"].values[place, 0], lumisection(run, number).occupancy)
    return until


@pytest.mark.timeout(scaled(600, 3600))
def test_a_kill_at_any_step_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Writers are killed one after another until the feed is filed, in several archives; compared with what was sent."""
    rng = random.Random(20)
    sent = messages(RUNS, LENGTH)
    killed: Counter[str] = Counter()
    archives, moved = 0, 0
    while sum(killed.values()) < KILLS or min(killed[step] for step in STEPS) < 5:
        archives += 1
        folder = tmp_path / str(archives)
        folder.mkdir()
        places = {"archive": str(folder / "A"), "letters": str(folder / "letters"), "runs": RUNS, "length": LENGTH}
        until, code = 0, None
        while code != 0:
            spec = {**places, **draw(rng, min(STEPS, key=lambda step: (killed[step], rng.random())))}
            code = exit_code_of_writer(spec)
            assert code in (0, -signal.SIGKILL), (code, spec)
            killed[spec["step"]] += code == -signal.SIGKILL
            before, until = until, assert_equals_oracle(folder / "A", folder / "letters", sent)
            assert until >= before
            moved += until > before
        assert until == len(sent)
    print(f"\n{sum(killed.values())} kills in {archives} archives of {len(sent)} messages: lost 0, repeated 0; {dict(killed)}")
    assert moved > archives  # most writers filed something before they were killed


class _Recorder:
    """Records events in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        real_commit, real_sync = icechunk.Session.commit, Lock.sync

        def commit(session: Any, *arguments: Any, **keywords: Any) -> str:
            snapshot = real_commit(session, *arguments, **keywords)
            self.events.append("commit")
            return snapshot

        def sync(lock: Lock) -> None:
            real_sync(lock)
            self.events.append("sync")

        monkeypatch.setattr(icechunk.Session, "commit", commit)
        monkeypatch.setattr(Lock, "sync", sync)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        self.events.append("letters")

    def close(self) -> None: ...


def test_what_is_filed_is_on_the_disk_before_the_feed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    recorder = _Recorder(monkeypatch)

    class Told(InProcessFeed):
        def commit(self, offsets: Any) -> None:
            recorder.events.append("tell")

    sent = messages(1, 50)
    loop = Ingest(Told(FEED, lambda: iter(sent)), ArchiveWriter(archive), recorder, topic="hcal", flush_s=3600)
    loop.step(0)
    loop.step(0)
    loop.drain()
    loop.close()
    # the first sync is of what the writer before had left
    assert recorder.events == ["letters", "sync", "commit", "sync", "tell"]


def _fail_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the disk report an error at the sync of this number (from 0) and at all later ones."""
    real, done = Lock.sync, itertools.count()

    def sync(lock: Lock) -> None:
        if next(done) >= number:
            raise OSError(5, "Input/output error", str(lock.path))
        real(lock)

    monkeypatch.setattr(Lock, "sync", sync)


@pytest.mark.parametrize("filed_before", [0, 1])
def test_a_commit_that_the_disk_did_not_take_is_withdrawn_and_filed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filed_before: int
) -> None:
    """Nothing is built on it or committed to Kafka: the kernel may have dropped its pages without a further error."""
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    sent = messages(1, 10)
    feed = InProcessFeed(FEED, lambda: iter(sent))
    writer = ArchiveWriter(archive)
    if filed_before:
        writer.append("other", 0, [Control(0, 1, ControlKind.START, 5)], 0, 1)
    before = archive.refresh().snapshot
    loop = Ingest(feed, writer, FolderDeadLetters(tmp_path / "L"), topic="hcal", flush_s=3600)
    _fail_sync(monkeypatch, 1 - filed_before)  # a new writer first asks for what was there
    loop.step(0)
    loop.step(0)
    with pytest.raises(ArchiveError, match=r"A is not on the disk: the disk reports an I/O error"):
        loop.drain()
    assert feed.committed == 0
    assert archive.refresh().snapshot == before
    monkeypatch.undo()
    again = Ingest(
        InProcessFeed(FEED, lambda: iter(sent)), ArchiveWriter(archive), FolderDeadLetters(tmp_path / "L"), topic="hcal"
    )
    again.step(0)
    again.step(0)
    again.drain()
    assert_equals_oracle(tmp_path / "A", tmp_path / "L", sent)
    assert Archive.open(tmp_path / "A").next_offset(FEED, 0) == len(sent)


def test_nothing_is_built_on_a_commit_whose_writer_ended_before_the_disk_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    sent = messages(1, 10)
    killed = {"archive": str(tmp_path / "A"), "letters": str(tmp_path / "L"), "runs": 1, "length": 10}
    code = exit_code_of_writer({**killed, "step": "after the commit", "commit": 1, "delay_s": 0, "poll": 3, "max_rows": 5})
    assert code == -signal.SIGKILL
    head = archive.refresh()
    at = head.next_offset(FEED, 0)
    assert at
    _fail_sync(monkeypatch, 0)
    with pytest.raises(ArchiveError, match="is not on the disk"):
        ArchiveWriter(head).append(FEED, 0, [Control(at, at + 1, ControlKind.START, 5)], at, at + 1)
    assert archive.refresh().snapshot == head.snapshot
    monkeypatch.undo()
    assert exit_code_of_writer({**killed, "step": "", "poll": 3, "max_rows": 5}) == 0
    assert assert_equals_oracle(tmp_path / "A", tmp_path / "L", sent) == len(sent)


@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_whose_answer_was_lost_is_found_by_reading_the_head_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """The store drops the answer: icechunk raises, although the commit landed. A commit that did not land is an error."""
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    real, lost = icechunk.Session.commit, []

    def drops_the_answer(session: Any, *arguments: Any, **keywords: Any) -> str:
        if lost:
            return real(session, *arguments, **keywords)
        lost.append(True)
        if landed:
            real(session, *arguments, **keywords)
        raise icechunk.IcechunkError("the answer was lost")

    monkeypatch.setattr(icechunk.Session, "commit", drops_the_answer)
    sent = messages(2, 20)
    feed = InProcessFeed(FEED, lambda: iter(sent), max_records=10)
    loop = Ingest(feed, ArchiveWriter(archive), FolderDeadLetters(tmp_path / "L"), topic="hcal", max_rows=8)
    if not landed:
        with pytest.raises(Exception, match="nothing was filed"):
            while not feed.exhausted:
                loop.step(0.01)
                loop.drain()
        assert Archive.open(tmp_path / "A").next_offset(FEED, 0) is None
        return
    while not feed.exhausted:
        loop.step(0.01)
    loop.drain()
    loop.close()
    assert lost
    assert loop.counts.duplicates == sum(a.value == b.value for a, b in pairwise(sent))
    assert_equals_oracle(tmp_path / "A", tmp_path / "L", sent)
    assert json.dumps(Archive.open(tmp_path / "A").offsets()) == json.dumps({FEED: {"0": [0, len(sent)]}})
