"""Filing: what was read of each partition becomes rows, control entries and dead letters, and goes to the archive in batches.

    decode -> row | control | dead letter -> batch -> dead letters kept -> archive.append

A batch starts at the offset where the archive ends and covers every offset that was read since: nothing is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_EVENTS
from dqmstream.storage.layout import ROWS_PER_CHUNK, ControlKind
from dqmstream.storage.writer import ArchiveWriter, Control, DatasetConflict, Entry, OffsetConflict, Row, SourceConflict
from dqmstream.streaming import source_agreement
from dqmstream.streaming.dead_letters import DeadLetter, DeadLetters
from dqmstream.streaming.log_limit import Repeats
from dqmstream.streaming.message import Message, Slice
from dqmstream.streaming.sorting import Sorter
from dqmstream.streaming.wire import Undecodable
from dqmstream.streaming.wire.undecodable import shortened

log = structlog.get_logger("dqmstream.ingest")


@dataclass
class IngestCounts:
    """What this process has filed so far."""

    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    revisions: int = 0
    dead: int = 0
    gaps: int = 0
    commits: int = 0
    stops: int = 0


@dataclass
class _Pending:
    """What was read of a partition and is not in the archive yet: [start, until), tiled by the entries.

    sizes: bytes of the message behind each entry.
    """

    start: int
    until: int
    entries: list[Entry] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    letters: dict[int, DeadLetter] = field(default_factory=dict)
    messages: dict[int, Message] = field(default_factory=dict)
    since: float = 0.0
    rows: int = 0

    def add(self, entry: Entry, until: int, size: int = 0) -> None:
        self.entries.append(entry)
        self.sizes.append(size)
        self.until = until


class Filer:
    """The batches of all partitions of one feed. It knows neither threads nor the feed itself.

    name: of the feed. max_rows: rows in one commit under load. flush_s: longest that a row waits, and, unless so many rows are
    there, the shortest time between two commits of a partition. max_events: the most that a lumisection can have. source:
    of an archive that has none yet; where that is not given either, rows that name one wait until enough agree
    (`streaming.source_agreement`), and `file_due` raises InputError where many do not. While the archive holds no row of the
    feed,
    rows of another source than its own wait as well, and `file_due` raises InputError where many of them came and none that
    fits; accept_others: they become dead letters at once.
    """

    def __init__(
        self,
        name: str,
        writer: ArchiveWriter,
        dead_letters: DeadLetters,
        *,
        topic: str,
        max_rows: int,
        flush_s: float,
        crc_required: bool,
        max_events: float = MAX_EVENTS,
        source: str = "",
        accept_others: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = IngestCounts()
        self.repeats = Repeats(clock=clock)
        self._name = name
        self._writer = writer
        self._dead_letters = dead_letters
        self._topic = topic
        self._max_rows = max_rows
        self._flush_s = flush_s
        self._sorter = Sorter(writer.archive, crc_required=crc_required, max_events=max_events)
        self._clock = clock
        self._pending: dict[int, _Pending] = {}
        self._filed_at: dict[int, float] = {}
        self._source = writer.archive.source or source
        self._accept_others = accept_others
        self._source_fits = False
        self._asked_at = self._taken_at = 0.0
        self._undecided_since: float | None = None

    @property
    def undecided(self) -> bool:
        """Whether rows wait for enough others that name the same source, or for one of the archive's."""
        return self._undecided_since is not None

    @property
    def open_question(self) -> str:
        """What is to be done about rows that wait so, empty where none does."""
        if not self.undecided:
            return ""
        rows = self._sourced()
        if self._source:
            return source_agreement.stranger_question(rows, self._source, self._writer.archive.refresh().is_empty)
        return source_agreement.open_question(rows)

    @property
    def waiting(self) -> int:
        """Offsets that were taken and are not in the archive yet."""
        return sum(pending.until - pending.start for pending in list(self._pending.values()))

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages behind them."""
        return sum(sum(pending.sizes) for pending in list(self._pending.values()))

    def begin(self, partition: int, offset: int) -> None:
        """The partition is read from this offset on; what was pending of it is dropped, since it will come again."""
        self._pending[partition] = _Pending(offset, offset)
        log.info("reading", feed=self._name, partition=partition, offset=offset)

    def drop(self, partition: int) -> None:
        """The partition is another worker's now, and so is what was not filed of it."""
        self._pending.pop(partition, None)

    def take(self, piece: Slice) -> None:
        """Sort what a slice holds into the partition's batch. A partition that was dropped is passed over."""
        pending = self._pending.get(piece.partition)
        if pending is None:
            return
        if piece.start != pending.until:
            raise RuntimeError(f"partition {piece.partition} goes on at {piece.start}, expected {pending.until}")
        if not pending.entries:
            pending.since = self._clock()
        if piece.gap:
            pending.add(Control(piece.start, piece.until, ControlKind.GAP, reason=piece.gap), piece.until)
            return
        self._taken_at = self._clock()
        rows = self._sorter.rows(piece.messages)
        for message in piece.messages:
            self._pass_over(pending, message.offset)
            entry = rows.get(message.offset) or self._sort(message, pending)
            if isinstance(entry, Row):
                pending.rows += 1
                if entry.source:
                    pending.messages[message.offset] = message
            pending.add(entry, message.offset + 1, message.size)
        self._pass_over(pending, piece.until)

    @staticmethod
    def _pass_over(pending: _Pending, until: int) -> None:
        """Offsets that hold no message (transaction markers, compaction) are accounted for as holes."""
        if until > pending.until:
            pending.add(Control(pending.until, until, ControlKind.HOLE, reason="the feed has no message here"), until)

    def _sort(self, message: Message, pending: _Pending) -> Entry:
        """What a message becomes: a row, a start or stop, or a dead letter."""
        try:
            return self._sorter.entry(message)
        except (Undecodable, ValueError) as error:
            return self._dead(message, pending, str(error))

    def _dead(self, message: Message, pending: _Pending, reason: str) -> Control:
        reason = shortened(reason)
        pending.letters[message.offset] = DeadLetter(self._name, self._topic, message, reason)
        return Control(message.offset, message.offset + 1, ControlKind.DEAD, reason=reason)

    def due_in(self, more_waits: bool) -> float | None:
        """Seconds until `file_due` has something to do, 0 or less if it has now; None while nothing is pending.

        more_waits: whether there are slices to be taken at once, for which a batch that is not full should wait.
        """
        due = [self._due_at(p, pending, more_waits) for p, pending in self._pending.items() if pending.entries]
        return min(due) - self._clock() if due else None

    def _due_at(self, partition: int, pending: _Pending, more_waits: bool) -> float:
        if self._blocked(pending):  # another worker may have settled the source meanwhile
            return self._asked_at + self._flush_s
        # Messages that are no rows fill the room that the feed has as well: it must not be held for flush_s each time.
        if pending.rows >= self._max_rows or len(pending.entries) >= 2 * self._max_rows:
            return float("-inf")
        latest = pending.since + self._flush_s
        # A row that comes alone, as at a detector's own rate, need not wait for others: the pause is behind it.
        return latest if more_waits else min(latest, self._filed_at.get(partition, float("-inf")) + self._flush_s)

    def file_due(self, more_waits: bool = False) -> tuple[dict[int, int], list[int]]:
        """File the batches that are due. Returns the archive's next_offset of each partition that was filed, and the
        partitions in which another worker has moved on: they are dropped, and must begin anew."""
        return self._file_those(lambda partition, pending: self._due_at(partition, pending, more_waits) <= self._clock())

    def file_all(self, *, last: bool = False) -> tuple[dict[int, int], list[int]]:
        """File all that was taken; returns what `file_due` does. last: the feed has nothing more and will not give this
        again, so the source that most rows name is believed, however few they are, and rows of others are not kept waiting."""
        return self._file_those(lambda partition, pending: True, no_more=True, last=last)

    def _file_those(
        self, due: Callable[[int, _Pending], bool], *, no_more: bool = False, last: bool = False
    ) -> tuple[dict[int, int], list[int]]:
        self._settle_source(no_more, last)
        filed: dict[int, int] = {}
        overtaken: list[int] = []
        for partition, pending in list(self._pending.items()):
            while pending.entries and not self._blocked(pending) and due(partition, pending):
                if self._file(partition, pending):
                    filed[partition] = pending.start
                else:
                    overtaken.append(partition)
                    self.drop(partition)
                    break
        return filed, overtaken

    def _settle_source(self, no_more: bool, last: bool) -> None:
        """Settle of which source the archive is, where rows name one and nobody has said, and whether the feed has rows of it.

        no_more: nothing more is waited for now; last: nor will it come later.
        """
        if self._source_fits or not any(pending.messages for pending in self._pending.values()):
            self._undecided_since = None
            return
        rows = self._sourced()
        self._asked_at = self._clock()
        archive = self._writer.archive.refresh()
        self._source = self._source or archive.source or source_agreement.agreed_source(rows)
        if last:
            self._source = self._source or source_agreement.most_frequent(rows)
        if self._source:
            self._source_fits = (
                last or self._accept_others or any(row.source == self._source for row in rows) or archive.holds_rows(self._name)
            )
        if self._source_fits:
            self._undecided_since = None
            return
        if self._undecided_since is None:
            self._undecided_since = self._asked_at
        full = self.waiting >= source_agreement.ROOM or self.waiting_bytes >= source_agreement.ROOM_BYTES
        if self._source and (full or no_more or self._asked_at >= self._taken_at + self._flush_s):
            source_agreement.check_strangers(rows, self._source, archive.is_empty)
        if full:
            raise InputError(self.open_question)
        if self._asked_at >= self._undecided_since + source_agreement.TOLD_AFTER_S:
            self.repeats.tell(log.warning, "rows wait for a source", self.open_question)

    def _sourced(self) -> list[Row]:
        """Pending rows that name a source."""
        pending = (pending for pending in list(self._pending.values()) if pending.messages)
        return [entry for one in pending for entry in one.entries if isinstance(entry, Row) and entry.source]

    def _blocked(self, pending: _Pending) -> bool:
        """Whether the next entry is a row that waits for others to agree with it."""
        return self.undecided and _names_source(pending.entries[0])

    def _file(self, partition: int, pending: _Pending) -> bool:
        """File the first of what is pending, dead letters first. False where another worker has filed it or more."""
        if self._source:
            self._bury_other_sources(pending, self._source)
        count = self._batch(partition, pending)
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
                return False
            except SourceConflict as conflict:
                self._source = conflict.stored
                self._bury_other_sources(pending, conflict.stored)
                continue
            except DatasetConflict as conflict:
                self._bury(pending, conflict.reasons)
                continue
            break
        self.counts.rows += filed.rows
        self.counts.duplicates += filed.duplicates
        self.counts.revisions += filed.revisions
        self.counts.dead += len(letters)
        self.counts.commits += 1
        for entry in entries:
            if isinstance(entry, Control):
                self.counts.stops += entry.kind is ControlKind.STOP
                self.counts.gaps += entry.kind is ControlKind.GAP
        for letter in letters:
            self.repeats.tell(log.warning, "dead letter", letter.reason, key=letter.key)
        del pending.entries[:count], pending.sizes[:count]
        pending.letters = {offset: letter for offset, letter in pending.letters.items() if offset >= until}
        pending.messages = {offset: message for offset, message in pending.messages.items() if offset >= until}
        pending.rows -= sum(isinstance(entry, Row) for entry in entries)
        pending.start = until
        pending.since = self._filed_at[partition] = self._clock()
        return True

    def _batch(self, partition: int, pending: _Pending) -> int:
        """How many entries make the next batch: all, or under load so many that the log ends at a full chunk.

        A partly filled chunk is written again by the next batch. Rows that wait for an agreement are left out.
        """
        if self.undecided:
            return next(k for k, entry in enumerate([*pending.entries, None]) if entry is None or _names_source(entry))
        if pending.rows < self._max_rows:
            return len(pending.entries)
        room = -self._writer.rows(self._name, partition) % ROWS_PER_CHUNK
        rows = min(self._max_rows, room + max(self._max_rows - room, 0) // ROWS_PER_CHUNK * ROWS_PER_CHUNK) or self._max_rows
        for count, entry in enumerate(pending.entries, start=1):
            rows -= isinstance(entry, Row)
            if rows == 0:
                return count
        return len(pending.entries)

    def _bury_other_sources(self, pending: _Pending, source: str) -> None:
        """Rows of another dataset or monitoring element than the archive's become dead letters."""
        others = (row for row in pending.entries if isinstance(row, Row) and row.source and row.source != source)
        self._bury(pending, {row.offset: f"the source is {row.source}, the archive holds {source}" for row in others})

    def _bury(self, pending: _Pending, reasons: Mapping[int, str]) -> None:
        """The rows at these offsets become dead letters, each with its reason."""
        if not reasons:
            return
        for place, entry in enumerate(pending.entries):
            if isinstance(entry, Row) and entry.offset in reasons:
                pending.entries[place] = self._dead(pending.messages[entry.offset], pending, reasons[entry.offset])
                pending.rows -= 1


def _names_source(entry: Entry) -> bool:
    return isinstance(entry, Row) and bool(entry.source)
