"""Reading on behind a batch that cannot be read: it costs its own offsets and no others.

Mended: the client's reader raises at a damaged batch. The next poll then spins for ever, whatever its timeout, and a seek
past the first offset meets the same batch again. Seen with kafka-python 3.0.12. Not reported upstream; for another client:
aio-libs/aiokafka issue 321.

`BatchReader` takes the reader's place and does not raise for what a batch holds. It lets the client fetch the batch once more,
since the damage may have happened on the way. If that does not help, each of the batch's offsets becomes a message with an
error, and reading goes on with the next sound batch. A missing codec, a lack of memory and a bug in a library are not the
batch's fault: they raise before its offsets are passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import structlog
from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.structs import TopicPartition

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka.batches import Batches
from dqmstream.streaming.kafka.old_formats import OldBatch
from dqmstream.streaming.kafka.workarounds import private_names
from dqmstream.streaming.kafka.workarounds.untrusted_records import Batch
from dqmstream.streaming.log_limit import LogLimit
from dqmstream.streaming.message import Message

log = structlog.get_logger("dqmstream.kafka")

EndOf = Callable[[TopicPartition], int | None]
"""A partition's end as the broker told it last, None if it did not."""


def survive_damage(consumer: KafkaConsumer, end_of: EndOf, log_limit: LogLimit | None = None) -> None:
    """Let the consumer read with `BatchReader`. log_limit: logs damage."""
    private_names.fetcher(consumer).PartitionRecords = partial(BatchReader, Suspects(log_limit), end_of)


class Suspects:
    """The offset of each partition that could not be read when it was fetched last."""

    def __init__(self, log_limit: LogLimit | None = None) -> None:
        self.log_limit = log_limit or LogLimit()
        self._offsets: dict[TopicPartition, int] = {}

    def confirm(self, tp: TopicPartition, offset: int) -> bool:
        """Whether the same offset failed before; it is noted if not."""
        if self._offsets.get(tp) == offset:
            del self._offsets[tp]
            return True
        self._offsets[tp] = offset
        return False


class BatchReader(Fetcher.PartitionRecords):
    """The fetcher's reader of what came of a partition."""

    def __init__(
        self,
        suspects: Suspects,
        end_of: EndOf,
        fetch_offset: int,
        tp: TopicPartition,
        records: MemoryRecords,
        **settings: Any,
    ) -> None:
        self.next_fetch_offset = fetch_offset
        self._suspects = suspects
        self._end_of = end_of
        if not records.has_next():
            records._next_slice = memoryview(b"")  # the fetcher would raise, and not say for which partition
        super().__init__(fetch_offset, tp, records, **settings)

    def _unpack_records(self, tp: TopicPartition, records: MemoryRecords, *deserializers: None) -> Iterator[Message]:
        """The messages, and one with an error for each offset that cannot be read."""
        batches = Batches(records._buffer, self.fetch_offset, self._end_of(tp))
        while True:
            try:
                yield from self._messages(batches)
                return
            except CorruptRecordError as error:  # any other error ends the feed where it is
                reason = f"the client cannot read it: {' '.join(map(str, error.args))}"
            except BrokerError as error:
                at = max(self.fetch_offset, self.next_fetch_offset)
                raise BrokerError(f"{tp.topic}/{tp.partition} cannot be read on from offset {at}: {error}") from error
            start = max(self.fetch_offset, self.next_fetch_offset)
            if not self._suspects.confirm(tp, start):
                self._tell(log.warning, "fetching again", reason, offset=start)
                self.next_fetch_offset = start
                self.drain()
                return
            until = batches.skip(start)
            self._tell(log.error, "unreadable", reason, offset=start, until=until)
            for offset in range(start, until):
                self.next_fetch_offset = offset + 1
                yield Message(tp.partition, offset, None, None, error=reason)

    def _tell(self, tell: Callable[..., Any], event: str, reason: str, **facts: int) -> None:
        tp = self.topic_partition
        self._suspects.log_limit.log(tell, event, reason, topic=tp.topic, partition=tp.partition, **facts)

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
        if last is not None:  # compaction may have removed its last records
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _is_aborted(self, batch: Batch | OldBatch) -> bool:
        """Whether the batch is of an aborted transaction; notes where transactions begin and end."""
        if isinstance(batch, OldBatch) or not batch.has_producer_id():
            return False
        if self.isolation_level != IsolationLevel.READ_COMMITTED:
            return False
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        return bool(self._is_batch_aborted(batch))
