"""The ingest loop: poll, decode, batch, file, and only then tell the feed.

    poll -> decode -> row | control | dead letter -> batch -> dead letters kept -> archive.append -> advisory commit

A batch starts at the offset where the archive ends and covers every offset that was read since: nothing is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from dqmstream.errors import DataLostError
from dqmstream.lumisection import Lumisection, RunStart
from dqmstream.storage.layout import ROWS_PER_CHUNK, Kind
from dqmstream.storage.log import ArchiveWriter, Control, Entry, OffsetConflict, Row, SourceConflict, make_row
from dqmstream.streaming.feed import DeadLetter, DeadLetters, Feed, Message, Revoked, Slice
from dqmstream.streaming.wire import Undecodable, decode

LONGEST_REASON = 500
"""Characters."""

log = structlog.get_logger("dqmstream.ingest")


@dataclass
class IngestCounts:
    """What this process has filed so far."""

    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    revisions: int = 0
    dead: int = 0
    commits: int = 0
    stops: int = 0


@dataclass
class _Pending:
    """What was read of a partition and is not in the archive yet: [start, until), tiled by the entries."""

    start: int
    until: int
    entries: list[Entry] = field(default_factory=list)
    letters: dict[int, DeadLetter] = field(default_factory=dict)
    messages: dict[int, Message] = field(default_factory=dict)
    since: float = 0.0
    rows: int = 0


class Ingest:
    """Files what a feed gives, once. One thread: while a commit is under way nothing is polled, so memory stays bounded.

    max_rows: rows filed in one commit under load. flush_s: longest that a row waits when little comes.
    topic: named in dead letters. Raises DataLostError where the feed lacks what the archive needs.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = IngestCounts()
        self._last_news = clock()
        self._feed = feed
        self._name = feed.name
        self._writer = writer
        self._dead_letters = dead_letters
        self._topic = topic
        self._max_rows = max_rows
        self._flush_s = flush_s
        self._crc_required = crc_required
        self._clock = clock
        self._pending: dict[int, _Pending] = {}

    def step(self, timeout_s: float) -> int:
        """Poll once and file what is due. Returns how many messages came."""
        polled = self._feed.poll(timeout_s)
        for partition in polled.revoked:
            self._pending.pop(partition, None)
        for partition in polled.assigned:
            self._begin(partition)
        came = 0
        for piece in polled.slices:
            self._take(piece)
            came += len(piece.messages)
        if came:
            self._last_news = self._clock()
            self.counts.messages += came
        for partition, pending in list(self._pending.items()):
            if pending.rows >= self._max_rows:
                self._file(partition, self._whole_chunks(partition, pending))
            elif pending.until > pending.start and self._clock() - pending.since >= self._flush_s:
                self._file(partition, len(pending.entries))
        return came

    def drain(self) -> None:
        """File all that was read."""
        for partition, pending in list(self._pending.items()):
            if pending.until > pending.start:
                self._file(partition, len(pending.entries))

    @property
    def waiting(self) -> int:
        """Offsets that were read and are not in the archive yet."""
        return sum(pending.until - pending.start for pending in self._pending.values())

    @property
    def idle_s(self) -> float:
        """Seconds since the last message, or since the feed was last known to hold more."""
        if not self._feed.exhausted:
            self._last_news = self._clock()
        return self._clock() - self._last_news

    def _begin(self, partition: int) -> None:
        """Start a partition where the archive ends."""
        stored = self._writer.archive.refresh().next_offset(self._name, partition)
        try:
            position = self._feed.start(partition, stored)
        except Revoked:
            self._pending.pop(partition, None)
            return
        self._pending[partition] = _Pending(position, position)
        log.info("reading", feed=self._name, partition=partition, offset=position)

    def _take(self, piece: Slice) -> None:
        pending = self._pending.get(piece.partition)
        if pending is None:
            raise RuntimeError(f"the feed gave messages of partition {piece.partition} before it was started")
        if piece.start != pending.until:
            raise RuntimeError(f"partition {piece.partition} goes on at {piece.start}, expected {pending.until}")
        if not pending.entries:
            pending.since = self._clock()
        for message in piece.messages:
            self._pass_over(pending, message.offset)
            entry = self._sort(message, pending)
            pending.entries.append(entry)
            pending.until = message.offset + 1
        self._pass_over(pending, piece.until)

    @staticmethod
    def _pass_over(pending: _Pending, until: int) -> None:
        """Offsets that hold no message (transaction markers, compaction) are accounted for as holes."""
        if until > pending.until:
            pending.entries.append(Control(pending.until, until, Kind.HOLE, reason="the feed has no message here"))
            pending.until = until

    def _sort(self, message: Message, pending: _Pending) -> Entry:
        """What a message becomes: a row, a start or stop, or a dead letter."""
        archive = self._writer.archive
        offset = message.offset
        try:
            record = decode(message, crc_required=self._crc_required)
            if not isinstance(record, Lumisection):
                kind = Kind.START if isinstance(record, RunStart) else Kind.STOP
                self.counts.stops += kind is Kind.STOP
                return Control(offset, offset + 1, kind, record.run)
            row = make_row(record, offset, archive.geometry, archive.dtype)
        except (Undecodable, ValueError) as error:
            return self._dead(message, pending, str(error))
        pending.rows += 1
        if record.source:
            pending.messages[offset] = message
        return row

    def _dead(self, message: Message, pending: _Pending, reason: str) -> Control:
        if len(reason) > LONGEST_REASON:  # a reason quotes what was sent
            reason = f"{reason[:LONGEST_REASON]}..."
        pending.letters[message.offset] = DeadLetter(self._name, self._topic, message, reason)
        return Control(message.offset, message.offset + 1, Kind.DEAD, reason=reason)

    def _whole_chunks(self, partition: int, pending: _Pending) -> int:
        """How many entries to file so that the log ends at a full chunk: partly filled chunks are written twice."""
        room = -self._writer.rows(self._name, partition) % ROWS_PER_CHUNK
        rows = room + (pending.rows - room) // ROWS_PER_CHUNK * ROWS_PER_CHUNK
        for count, entry in enumerate(pending.entries, start=1):
            rows -= isinstance(entry, Row)
            if rows == 0:
                return count
        return len(pending.entries)

    def _file(self, partition: int, count: int) -> None:
        """File the first `count` entries of what is pending, dead letters first."""
        pending = self._pending[partition]
        if self._feed.name != self._name:
            raise DataLostError(
                f"{self._name} was deleted and made again as {self._feed.name}: start again to read the new one"
            )
        while True:
            entries = pending.entries[:count]
            until = entries[-1].offset + 1 if isinstance(entries[-1], Row) else entries[-1].until
            letters = [letter for offset, letter in pending.letters.items() if offset < until]
            if letters:
                self._dead_letters.put(letters)
            try:
                filed = self._writer.append(self._name, partition, entries, pending.start, until)
            except OffsetConflict as conflict:
                log.warning("another worker has moved on", partition=partition, ours=pending.start, stored=conflict.stored)
                self._begin(partition)
                return
            except SourceConflict as conflict:
                self._bury_other_sources(pending, conflict.stored)
                continue
            break
        self._feed.commit({partition: until})
        self.counts.rows += filed.rows
        self.counts.duplicates += filed.duplicates
        self.counts.revisions += filed.revisions
        self.counts.dead += len(letters)
        self.counts.commits += 1
        for letter in letters:
            log.warning("dead letter", key=letter.key, reason=letter.reason)
        left = pending.entries[count:]
        self._pending[partition] = _Pending(
            start=until,
            until=pending.until,
            entries=left,
            letters={offset: letter for offset, letter in pending.letters.items() if offset >= until},
            messages={offset: message for offset, message in pending.messages.items() if offset >= until},
            since=self._clock(),
            rows=sum(isinstance(entry, Row) for entry in left),
        )

    def _bury_other_sources(self, pending: _Pending, source: str) -> None:
        """Rows of another dataset or monitoring element than the archive's become dead letters."""
        for place, entry in enumerate(pending.entries):
            if isinstance(entry, Row) and entry.source and entry.source != source:
                message = pending.messages[entry.offset]
                pending.entries[place] = self._dead(
                    message, pending, f"the source is {entry.source}, the archive holds {source}"
                )
                pending.rows -= 1
