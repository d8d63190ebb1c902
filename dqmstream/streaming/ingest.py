"""Ingest: one thread polls the feed, another files, and a bounded queue lies between them.

    poll | queue | sort -> pending batch -> dead letters kept -> archive.append | advisory commit

Polling goes on whatever the disk does, so the worker stays in its group. When the queue is full the feed is held, so memory
stays bounded. Only the polling thread calls the feed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from dqmstream.lumisection import MAX_EVENTS
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.dead_letters import DeadLetters
from dqmstream.streaming.feed import Feed, Revoked
from dqmstream.streaming.filer import Filed, Filer
from dqmstream.streaming.message import Slice
from dqmstream.streaming.source_agreement import ROOM

MAX_WAITING_BYTES = 128 * 2**20
"""Message values that were read and are not filed yet: the feed is held above it, and released below half of it."""

log = structlog.get_logger("dqmstream.ingest")


@dataclass(frozen=True, slots=True)
class _Begin:
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Drop:
    partition: int


@dataclass(frozen=True, slots=True)
class _Drain:
    """File everything before this in the queue, then set `done`. last: see `Filer.file_all`."""

    done: threading.Event
    last: bool


class _Close:
    """End the filing thread."""


_Item = Slice | _Begin | _Drop | _Drain | _Close


class Ingest:
    """Files each message of a feed once. Call `step` again and again, then `drain`, then `close`.

    max_rows: rows of one commit under load; four times as many messages wait at most. flush_s: longest that a row waits when
    few come. topic: named in dead letters. max_events: most events that a lumisection can have. source: of an archive that has
    none yet. accept_others: rows of other sources become dead letters even while none has the archive's source
    (`source_agreement`).

    An error while filing (ArchiveError, OSError, InputError where the source cannot be settled) is raised by the next `step`
    or `drain`. An error of the feed, such as DataLostError where a topic was made again, is raised by `step` at once.
    """

    def __init__(
        self,
        feed: Feed,
        writer: ArchiveWriter,
        dead_letters: DeadLetters,
        *,
        topic: str,
        max_rows: int = 1024,
        flush_s: float = 1.0,
        crc_required: bool = True,
        max_events: float = MAX_EVENTS,
        source: str = "",
        accept_others: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._name = feed.name
        self._writer = writer
        self._clock = clock
        self._last_news = clock()
        self._max_waiting = 4 * max_rows
        self._filer = Filer(
            self._name,
            writer,
            dead_letters,
            topic=topic,
            max_rows=max_rows,
            flush_s=flush_s,
            crc_required=crc_required,
            max_events=max_events,
            source=source,
            accept_others=accept_others,
            clock=clock,
        )
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._queued, self._queued_bytes = 0, 0
        self._lock = threading.Lock()
        self._moved = threading.Event()
        self._outcomes: queue.SimpleQueue[Filed] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._held = False
        self._partitions: set[int] = set()
        self._thread = threading.Thread(target=self._file_until_closed, name="filer", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> IngestCounts:
        return self._filer.counts

    def step(self, timeout_s: float) -> int:
        """Poll once, waiting up to timeout_s, and queue what came. Returns the number of messages."""
        self._take_outcomes()
        self._filer.log_limit.log_suppressed()
        self._hold_or_release()
        if self._held:  # the group must see polls, and the queue needs time
            self._moved.clear()
            polled = self._feed.poll(0)
            if not polled.slices:
                self._moved.wait(timeout_s)
        else:
            polled = self._feed.poll(timeout_s)
        for partition in polled.revoked:
            self._partitions.discard(partition)
            self._queue.put(_Drop(partition))
        for partition in polled.assigned:
            self._partitions.add(partition)
            self._begin(partition)
        came = 0
        for piece in polled.slices:
            with self._lock:
                self._queued += piece.until - piece.start
                self._queued_bytes += piece.size
            self._queue.put(piece)
            came += len(piece.messages)
        self.counts.messages += came
        if came or not self._feed.exhausted:
            self._last_news = self._clock()
        return came

    def drain(self, timeout_s: float | None = None, *, last: bool = False) -> bool:
        """File everything that was read, within timeout_s. False where that took longer: the rest will be read again.

        Rows that wait until the archive's source is known stay unfiled (`open_question`), unless this is the last chance.
        last: the feed ends and will not return these messages again.
        """
        done = threading.Event()
        self._queue.put(_Drain(done, last))
        deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while not done.wait(min(0.1, max(deadline - time.monotonic(), 0.0))):
            if not self._thread.is_alive() or time.monotonic() >= deadline:
                break
        self._take_outcomes()
        return done.is_set()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the filing thread, waiting timeout_s for a write to end. What was not drained will be read again."""
        self._queue.put(_Close())
        self._thread.join(timeout_s)
        self._filer.log_limit.log_suppressed(at_end=True)

    @property
    def waiting(self) -> int:
        """Offsets that were read and are not in the archive yet."""
        return self._queued + self._filer.waiting

    @property
    def partitions(self) -> int:
        """How many partitions this worker holds."""
        return len(self._partitions)

    @property
    def open_question(self) -> str:
        """What the operator can do about rows that wait until the archive's source is known, empty where none does."""
        return self._filer.open_question

    @property
    def held(self) -> bool:
        """Whether the feed is held because the queue is full."""
        return self._held

    @property
    def idle_s(self) -> float:
        """Seconds since the last message, or since the last `step` at which the feed was not exhausted."""
        return self._clock() - self._last_news

    def _begin(self, partition: int) -> None:
        """Start reading a partition where the archive ends."""
        stored = self._writer.archive.refresh().next_offset(self._name, partition)
        try:
            position = self._feed.start(partition, stored)
        except Revoked:
            self._partitions.discard(partition)
            self._queue.put(_Drop(partition))
            return
        self._queue.put(_Begin(partition, position))

    def _take_outcomes(self) -> None:
        """Commit what was filed, begin anew where another worker has filed further, raise an error of the filing thread."""
        filed: dict[int, int] = {}
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            filed |= outcome.next_offsets
            for partition in outcome.overtaken:
                self._begin(partition)
        if filed:
            self._feed.commit(filed)
        if self._failure is not None:
            raise self._failure

    def _hold_or_release(self) -> None:
        waiting, waiting_bytes = self.waiting, self._queued_bytes + self._filer.waiting_bytes
        share = 2 if self._held else 1  # half of it must be filed before the feed is released
        most = max(self._max_waiting, ROOM) if self._filer.undecided else self._max_waiting
        full = share * waiting >= most or share * waiting_bytes >= MAX_WAITING_BYTES
        if full != self._held:
            self._held = full
            self._feed.hold(full)

    def _file_until_closed(self) -> None:
        """The filing thread: runs until it is closed, or until an error."""
        try:
            while not isinstance(item := self._next(), _Close):
                if isinstance(item, _Drain):
                    self._note(self._filer.file_all(last=item.last))
                    item.done.set()
                    continue
                if item is not None:
                    self._take(item)
                self._note(self._filer.file_due(more_waits=not self._queue.empty()))
        except BaseException as error:  # noqa: BLE001 - the polling thread raises it
            self._failure = error
        self._moved.set()

    def _next(self) -> _Item | None:
        """The next item of the queue; None where a batch is due before one comes."""
        wait_s = self._filer.due_in(more_waits=not self._queue.empty())
        try:
            return self._queue.get(timeout=None if wait_s is None else max(wait_s, 0.0))
        except queue.Empty:
            return None

    def _take(self, item: Slice | _Begin | _Drop) -> None:
        if isinstance(item, _Begin):
            self._filer.begin(item.partition, item.offset)
        elif isinstance(item, _Drop):
            self._filer.drop(item.partition)
        else:
            self._filer.take(item)
            with self._lock:
                self._queued -= item.until - item.start
                self._queued_bytes -= item.size

    def _note(self, outcome: Filed) -> None:
        if any(outcome):
            self._outcomes.put(outcome)
            self._moved.set()
