"""An event that repeats is logged a few times, then counted, and hides no other kind of event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.log_limit import INTERVAL_S, LINES, MOST_KINDS, LogLimit
from dqmstream.streaming.message import Message


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_few_are_logged_the_rest_counted_and_another_reason_is_logged_at_once() -> None:
    clock, lines = Clock(), []

    def tell(event: str, **facts: Any) -> None:
        lines.append((event, facts))

    log_limit = LogLimit(clock=clock)
    for number in range(1000):
        log_limit.log(tell, "dead letter", f"run {number} is not 'that'", key=number)
    assert lines == [("dead letter", {"reason": f"run {k} is not 'that'", "key": k}) for k in range(LINES)]
    log_limit.log(tell, "dead letter", "the value is empty", key=5)
    assert lines.pop() == ("dead letter", {"reason": "the value is empty", "key": 5})
    del lines[:]
    log_limit.log_suppressed()
    assert lines == []
    clock.now = INTERVAL_S
    log_limit.log_suppressed()
    more = {"count": 1000 - LINES, "last_reason": "run 999 is not 'that'", "key": 999}
    assert lines == [("dead letter: more of its kind", more)]
    log_limit.log(tell, "dead letter", "run 7 is not 'that'", key=7)
    assert lines[-1] == ("dead letter", {"reason": "run 7 is not 'that'", "key": 7})


def test_reasons_without_end_are_one_kind_from_some_number_on() -> None:
    lines: list[str] = []
    log_limit = LogLimit(clock=Clock())
    for k in range(10_000):
        log_limit.log(lambda event, **facts: lines.append(event), "dead letter", "x" * (k % 40) + chr(1000 + k))
    assert len(lines) <= LINES * (MOST_KINDS + 1)
    log_limit.log_suppressed(at_end=True)
    assert len(lines) <= (LINES + 1) * (MOST_KINDS + 1)


class Kept:
    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def put(self, letters: list[DeadLetter]) -> None:
        self.letters += letters

    def close(self) -> None:
        """Nothing is held open."""


def test_a_flood_of_refused_messages_is_kept_letter_by_letter_and_logged_in_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock stands still, so no batch is due by time: a full one is due at once, with rows or without."""
    count, kept = 6 * 64, Kept()
    feed = InProcessFeed("hcal", lambda: (Message(0, offset, None, b"x") for offset in range(count)), max_records=32)
    archive = Archive.create(tmp_path / "A")
    loop = Ingest(feed, ArchiveWriter(archive), kept, topic="hcal", max_rows=64, crc_required=False, clock=Clock())
    while loop.counts.messages < count:
        loop.step(0.05)
    assert loop.drain()
    loop.close()
    assert [letter.message.offset for letter in kept.letters] == list(range(count))
    lines = [line for line in capsys.readouterr().out.splitlines() if "dead letter" in line]
    assert len(lines) == LINES + 1
    assert f"count={count - LINES}" in lines[-1]
