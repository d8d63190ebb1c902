"""Filing: what was read of each partition is sorted into a batch, and batches are filed in the archive.

    slice -> sorting -> pending batch -> may it be filed? -> dead letters kept -> archive.append

A batch starts at the offset where the archive ends, and each offset that was read since lies in one of its entries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

from dqmstream.lumisection import MAX_EVENTS
from dqmstream.storage.entries import Control, Entry, Row
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import Appended, ArchiveWriter, DatasetConflict, OffsetConflict, SourceConflict
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.dead_letters import DeadLetter, DeadLetters
from dqmstream.streaming.filing_rules import FilingRules
from dqmstream.streaming.log_limit import LogLimit
from dqmstream.streaming.message import Message, Slice
from dqmstream.streaming.pending import PendingBatch, end_of
from dqmstream.streaming.sorting import Sorter
from dqmstream.streaming.source_agreement import ROOM, ROOM_BYTES, SourceAgreement, other_source
from dqmstream.streaming.wire import Undecodable
from dqmstream.streaming.wire.undecodable import shortened

log = structlog.get_logger("dqmstream.ingest")


class Filed(NamedTuple):
    """What one call has filed.

    next_offsets: the archive's next offset of each partition that was filed. overtaken: partitions that another worker has
    filed further; their batches are dropped, and reading begins anew.
    """

    next_offsets: dict[int, int]
    overtaken: list[int]


class Filer:
    """The batches of all partitions of one feed. It knows neither threads nor the feed itself.

    name: of the feed. topic: named in dead letters. max_rows, flush_s: see `FilingRules`. max_events: most events that a
    lumisection can have. source, accept_others: see `SourceAgreement`.
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
        self.log_limit = LogLimit(clock=clock)
        self._name = name
        self._writer = writer
        self._dead_letters = dead_letters
        self._topic = topic
        self._sorter = Sorter(writer.archive, crc_required=crc_required, max_events=max_events)
        self._clock = clock
        self._pending: dict[int, PendingBatch] = {}
        self._taken_at = 0.0
        self._sources = SourceAgreement(
            writer.archive,
            name,
            given=source,
            accept_others=accept_others,
            patience_s=flush_s,
            log_limit=self.log_limit,
            clock=clock,
        )
        self._rules = FilingRules(self._sources, max_rows=max_rows, flush_s=flush_s, clock=clock)

    @property
    def undecided(self) -> bool:
        """Whether rows wait until the archive's source is known, or until one of it comes."""
        return self._sources.undecided

    @property
    def open_question(self) -> str:
        """What the operator can do about rows that wait so, empty where none does."""
        return self._sources.question(self._sourced_rows())

    @property
    def waiting(self) -> int:
        """Offsets that were taken and are not in the archive yet."""
        return sum(batch.until - batch.start for batch in list(self._pending.values()))

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages at these offsets."""
        return sum(sum(batch.sizes) for batch in list(self._pending.values()))

    def begin(self, partition: int, offset: int) -> None:
        """The partition is read from this offset on. What was pending of it is dropped, since it will be read again."""
        self._pending[partition] = PendingBatch(offset, offset)
        log.info("reading", feed=self._name, partition=partition, offset=offset)

    def drop(self, partition: int) -> None:
        """The partition belongs to another worker now, and so does what was not filed of it."""
        self._pending.pop(partition, None)

    def take(self, piece: Slice) -> None:
        """Sort a slice into its partition's batch. A slice of a partition that was dropped is ignored."""
        batch = self._pending.get(piece.partition)
        if batch is None:
            return
        if piece.start != batch.until:
            raise RuntimeError(f"partition {piece.partition} goes on at {piece.start}, expected {batch.until}")
        if not batch.entries:
            batch.since = self._clock()
        if piece.gap:
            batch.add(Control(piece.start, piece.until, ControlKind.GAP, reason=piece.gap), piece.until)
            return
        self._taken_at = self._clock()
        source = self._sources.confirmed
        rows = self._sorter.rows(piece.messages, source)
        for message in piece.messages:
            batch.add_hole(message.offset)
            entry = rows.get(message.offset) or self._entry(message, source, batch)
            batch.add(entry, message.offset + 1, message)
        batch.add_hole(piece.until)

    def _entry(self, message: Message, source: str, batch: PendingBatch) -> Entry:
        try:
            return self._sorter.entry(message, source)
        except (Undecodable, ValueError) as error:
            return self._dead_letter(message, batch, str(error))

    def _dead_letter(self, message: Message, batch: PendingBatch, reason: str) -> Control:
        reason = shortened(reason)
        batch.dead_letters[message.offset] = DeadLetter(self._name, self._topic, message, reason)
        return Control(message.offset, message.offset + 1, ControlKind.DEAD, reason=reason)

    def due_in(self, more_waits: bool) -> float | None:
        """Seconds until `file_due` has something to do, 0 or less if it has now; None while nothing is pending.

        more_waits: whether there are slices to be taken at once, for which a batch that is not full should wait.
        """
        due = [self._rules.due_at(p, batch, more_waits) for p, batch in self._pending.items() if batch.entries]
        return min(due) - self._clock() if due else None

    def file_due(self, more_waits: bool = False) -> Filed:
        """File the batches that are due. Raises InputError where the archive's source cannot be settled."""
        self._settle_source()
        return self._file_those(lambda partition, batch: self._rules.may_be_filed(partition, batch, more_waits=more_waits))

    def file_all(self, *, last: bool = False) -> Filed:
        """File all that was taken, without waiting for more. Raises as `file_due`.

        last: the feed ends and will not return these messages again. The archive's source is then settled with what came.
        """
        self._settle_source(no_more=True, last=last)
        return self._file_those(lambda partition, batch: self._rules.may_be_filed_early(batch))

    def _settle_source(self, *, no_more: bool = False, last: bool = False) -> None:
        rows = [] if self._sources.confirmed else self._sourced_rows()
        no_room = bool(rows) and (self.waiting >= ROOM or self.waiting_bytes >= ROOM_BYTES)
        self._sources.settle(rows, taken_at=self._taken_at, no_room=no_room, no_more=no_more, last=last)

    def _sourced_rows(self) -> list[Row]:
        """Pending rows that name a source."""
        return [row for batch in list(self._pending.values()) for row in batch.sourced_rows()]

    def _file_those(self, may_be_filed: Callable[[int, PendingBatch], bool]) -> Filed:
        filed = Filed({}, [])
        for partition, batch in list(self._pending.items()):
            while may_be_filed(partition, batch):
                if self._file(partition, batch):
                    filed.next_offsets[partition] = batch.start
                else:
                    filed.overtaken.append(partition)
                    self.drop(partition)
                    break
        return filed

    def _file(self, partition: int, batch: PendingBatch) -> bool:
        """File the start of a batch, its dead letters first. False where another worker has filed it or more."""
        self._reject_other_sources(batch)
        count = self._rules.entries_in_commit(batch, self._writer.rows(self._name, partition))
        while True:
            entries = batch.entries[:count]
            until = end_of(entries[-1])
            dead_letters = [letter for offset, letter in batch.dead_letters.items() if offset < until]
            if dead_letters:
                self._dead_letters.put(dead_letters)
            try:
                appended = self._writer.append(self._name, partition, entries, batch.start, until)
                break
            except OffsetConflict as conflict:
                log.warning("another worker has filed further", partition=partition, ours=batch.start, stored=conflict.stored)
                return False
            except SourceConflict as conflict:
                self._sources.correct(conflict.stored)
                self._reject_other_sources(batch)
            except DatasetConflict as conflict:
                self._reject(batch, conflict.reasons)
        self._count(appended, entries, dead_letters)
        batch.remove_first(count)
        batch.since = self._clock()
        self._rules.note_filed(partition)
        return True

    def _count(self, appended: Appended, entries: list[Entry], dead_letters: list[DeadLetter]) -> None:
        self.counts.rows += appended.rows
        self.counts.duplicates += appended.duplicates
        self.counts.revisions += appended.revisions
        self.counts.dead += len(dead_letters)
        self.counts.commits += 1
        for entry in entries:
            if isinstance(entry, Control):
                self.counts.stops += entry.kind is ControlKind.STOP
                self.counts.gaps += entry.kind is ControlKind.GAP
        for letter in dead_letters:
            self.log_limit.log(log.warning, "dead letter", letter.reason, key=letter.key)

    def _reject_other_sources(self, batch: PendingBatch) -> None:
        """Rows of another source than the archive's become dead letters: they were read before it was known."""
        if source := self._sources.source:
            self._reject(
                batch, {row.offset: other_source(row.source, source) for row in batch.sourced_rows() if row.source != source}
            )

    def _reject(self, batch: PendingBatch, reasons: Mapping[int, str]) -> None:
        """The rows at these offsets become dead letters, each with its reason."""
        if not reasons:
            return
        for place, entry in enumerate(batch.entries):
            if isinstance(entry, Row) and entry.offset in reasons:
                batch.entries[place] = self._dead_letter(batch.sourced[entry.offset], batch, reasons[entry.offset])
                batch.rows -= 1
