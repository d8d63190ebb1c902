"""What a fetch brought, batch by batch: one that cannot be read costs its own offsets and no others.

The client's reader raises at a damaged batch and is of no use after that: the next poll spins for ever, whatever its
timeout, and a seek past the first offset meets the same batch again. `BatchReader` takes its place, and does not raise for
what a batch holds. It has the batch fetched once more, since it may have been damaged on its way; if that does not help, it
gives out each of its offsets as a message with an error and goes on with the next sound batch.

A batch's checksum does not cover its base offset, length and magic, so a batch must also lie where it claims to: behind the
one before it, ahead of the one after it, and below the partition's end. How far a damaged batch reaches is told by the
sound batch behind it, and by its own header only where no such batch was fetched.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import structlog
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import TopicPartition

from dqmstream.streaming.feed import Message
from dqmstream.streaming.kafka.client import is_fatal
from dqmstream.streaming.kafka.records import Batch

HEADER = struct.Struct(">qi4xb4x2xi")
"""Base offset, length of what follows it, magic, last offset less base offset; checksum and others left out."""

PREFIX_BYTES = 12
"""Base offset and length, which the length does not count."""

HEADER_BYTES = DefaultRecordBatch.HEADER_STRUCT.size
MAGIC_AT = 16
MAGIC = 2

log = structlog.get_logger("dqmstream.kafka")


class Suspects:
    """The offset of each partition that could not be read when it was fetched last."""

    def __init__(self) -> None:
        self._offsets: dict[TopicPartition, int] = {}

    def confirm(self, tp: TopicPartition, offset: int) -> bool:
        """Whether the same offset failed before; it is noted if not."""
        if self._offsets.get(tp) == offset:
            del self._offsets[tp]
            return True
        self._offsets[tp] = offset
        return False


class _Place(NamedTuple):
    """A batch as its header tells it: bytes [at, until) of the buffer, offsets first to last."""

    at: int
    until: int
    first: int
    last: int


class Batches:
    """The batches in a buffer that was fetched, each checked to lie where it claims to.

    start: the offset that was asked for. end: the partition's end as the broker told it, None if it did not.
    """

    def __init__(self, buffer: bytes, start: int, end: int | None) -> None:
        self._buffer = bytes(buffer)
        self._view = memoryview(self._buffer)
        self._expected = start
        self._end = 2**63 if end is None else end
        self._at = 0
        self._next = 0
        self._in_place = False

    def next_batch(self) -> Batch | None:
        """The next batch, None behind the last whole one. Raises CorruptRecordError where it is not what it claims to be."""
        self._at, self._in_place = self._next, False
        left = len(self._buffer) - self._at
        leads = self._at == 0  # the broker cuts what it sends anywhere, but never the first batch, which may begin early
        if left == 0 or (left < HEADER_BYTES and not leads):
            return None
        place = self._place(self._at)
        if place is None:
            raise CorruptRecordError(f"no batch begins where offset {self._expected} should be")
        if place.until > len(self._buffer):
            if not leads:
                return None
            raise CorruptRecordError(f"the batch of offset {self._expected} has {left} of {place.until - place.at} bytes")
        if (
            (place.last if leads else place.first) < self._expected
            or not place.first <= place.last < self._end
            or (place.first > self._expected and self._runs_into_next(place))
        ):
            raise CorruptRecordError(f"a batch claims offsets {place.first} to {place.last} where {self._expected} should be")
        self._next, self._expected, self._in_place = place.until, place.last + 1, True
        return self._batch(place)

    def skip(self, start: int) -> int:
        """Go on behind the batch that could not be read. start: its first offset; returns the first one behind it."""
        place = self._place(self._at)
        if place is not None and self._in_place and self._is_sound(place):
            return place.last + 1
        for behind in self._candidates(place):
            if start < behind.first <= behind.last < self._end:
                self._next, self._expected = behind.at, behind.first
                return behind.first
        self._next = len(self._buffer)
        return place.last + 1 if place is not None and start <= place.last < self._end else start + 1

    def _runs_into_next(self, place: _Place) -> bool:
        behind = self._place(place.until)
        return behind is not None and behind.first <= place.last and self._is_sound(behind)

    def _candidates(self, damaged: _Place | None) -> Iterator[_Place]:
        """Where the next batch may begin: where the damaged one says that it ends, else wherever a sound one is found."""
        framed = self._place(damaged.until) if damaged is not None else None
        if framed is not None and (framed.until > len(self._buffer) or self._is_sound(framed)):
            yield framed
        found = self._buffer.find(MAGIC, self._at + 1 + MAGIC_AT)
        while found >= 0:
            place = self._place(found - MAGIC_AT)
            if place is not None and place.until <= len(self._buffer) and self._is_sound(place):
                yield place
            found = self._buffer.find(MAGIC, found + 1)

    def _place(self, at: int) -> _Place | None:
        """What the header there says, None if it is no header."""
        if at + HEADER.size > len(self._buffer):
            return None
        first, length, magic, delta = HEADER.unpack_from(self._buffer, at)
        if magic != MAGIC or length < HEADER_BYTES - PREFIX_BYTES:
            return None
        return _Place(at, at + PREFIX_BYTES + length, first, first + delta)

    def _is_sound(self, place: _Place) -> bool:
        """Whether its checksum is right."""
        return place.until <= len(self._buffer) and self._batch(place).validate_crc()

    def _batch(self, place: _Place) -> Batch:
        return Batch(self._view[place.at : place.until])


class BatchReader(Fetcher.PartitionRecords):
    """The fetcher's reader of what came of a partition. end: asks for the partition's end as the broker told it last."""

    def __init__(
        self,
        suspects: Suspects,
        end: Callable[[TopicPartition], int | None],
        fetch_offset: int,
        tp: TopicPartition,
        records: MemoryRecords,
        **settings: Any,
    ) -> None:
        self.next_fetch_offset = fetch_offset
        self._suspects = suspects
        self._told_end = end
        if not records.has_next():
            records._next_slice = memoryview(b"")  # the fetcher would raise, and not say for which partition
        super().__init__(fetch_offset, tp, records, **settings)

    def _unpack_records(self, tp: TopicPartition, records: MemoryRecords, *deserializers: None) -> Iterator[Message]:
        """The messages, and one with an error for each offset that holds none that can be read."""
        batches = Batches(records._buffer, self.fetch_offset, self._told_end(tp))
        while True:
            try:
                yield from self._messages(batches)
                return
            except Exception as error:
                if is_fatal(error):
                    raise
                reason = f"the client cannot read it: {type(error).__name__}: {' '.join(map(str, error.args))}"
            start = max(self.fetch_offset, self.next_fetch_offset)
            if not self._suspects.confirm(tp, start):
                log.warning("fetching again", topic=tp.topic, partition=tp.partition, offset=start, reason=reason)
                self.next_fetch_offset = start
                self.drain()
                return
            until = batches.skip(start)
            log.error("unreadable", topic=tp.topic, partition=tp.partition, offset=start, until=until, reason=reason)
            for offset in range(start, until):
                self.next_fetch_offset = offset + 1
                yield Message(tp.partition, offset, None, None, error=reason)

    def _messages(self, batches: Batches) -> Iterator[Message]:
        """What the client's own generator does, without an object of the client's for each record."""
        partition = self.topic_partition.partition
        last = None
        while (batch := batches.next_batch()) is not None:
            last = batch
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(
                    f"Record batch for partition {self.topic_partition} at offset {batch.base_offset} failed crc check"
                )
            self.leader_epoch = batch.leader_epoch
            if self._is_aborted(batch) or batch.is_control_batch:
                self.next_fetch_offset = batch.next_offset
                continue
            for message in batch.messages(partition):
                self.next_fetch_offset = message.offset + 1
                yield message
            self.records_read += batch.records_count
            self.bytes_read += batch.size_in_bytes
        if last is not None:  # its last records may have been removed by compaction
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _is_aborted(self, batch: Batch) -> bool:
        """Whether the batch is of a transaction that was aborted; notes where transactions begin and end."""
        if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
            return False
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        return bool(self._is_batch_aborted(batch))
