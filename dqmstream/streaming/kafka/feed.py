"""The partitions of a topic, as the consumer group gives them out.

kafka-python 3 runs its I/O on a thread of its own. A rebalance is told on that thread, where nothing may block, so the
listener only pauses and takes notes; the polling thread asks the archive, seeks and resumes. A record error (bad CRC,
missing codec) would make the next poll spin for ever, so it ends the feed loudly at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import IllegalStateError, KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.feed import Message, Polled, Revoked, Slice
from dqmstream.streaming.kafka.client import connect, missing

log = structlog.get_logger("dqmstream.kafka")

MAX_FETCH_BYTES = 4 * 2**20
CLOSE_TIMEOUT_MS = 5000


class _Assignments(ConsumerRebalanceListener):
    """Notes of the I/O thread for the polling thread."""

    def __init__(self) -> None:
        self.consumer: KafkaConsumer | None = None
        self._lock = threading.Lock()
        self._revoked: list[int] = []
        self._assigned: list[int] = []
        self.joined = False

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        with self._lock:
            gone = [tp.partition for tp in revoked]
            self._assigned = [p for p in self._assigned if p not in gone]
            self._revoked += gone

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        assert self.consumer is not None
        self.consumer.pause(*assigned)
        for tp in assigned:
            self.consumer.seek(tp, 0)  # a place to stand: without one the client asks for the group's commits, or raises
        with self._lock:
            self.joined = True
            self._assigned += [tp.partition for tp in assigned]

    def take(self) -> tuple[list[int], list[int]]:
        with self._lock:
            noted = self._revoked, self._assigned
            self._revoked, self._assigned = [], []
        return noted


class KafkaFeed:
    """The partitions of a topic that the consumer group gives to this worker."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        instance: str | None = None,
        max_records: int = 256,
        session_timeout_ms: int = 45_000,
    ) -> None:
        self.topic = topic
        self._assignments = _Assignments()
        self._positions: dict[int, int] = {}
        self._filed: dict[TopicPartition, OffsetAndMetadata] = {}
        self._held = False
        self._consumer = connect(
            KafkaConsumer,
            bootstrap,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=max_records,
            max_partition_fetch_bytes=MAX_FETCH_BYTES,
            fetch_max_bytes=16 * 2**20,
            session_timeout_ms=session_timeout_ms,
            allow_auto_create_topics=False,
            metadata_max_age_ms=5000,  # how soon a topic that was made again is noticed
        )
        self._assignments.consumer = self._consumer
        self._consumer.subscribe([topic], listener=self._assignments)
        if not self._consumer.partitions_for_topic(topic):
            self._consumer.close(autocommit=False)
            raise BrokerError(missing(bootstrap, topic))
        self._name = f"{topic}@{self._consumer._cluster.cluster_id}.{self._topic_id() or 'no-id'}"

    def _topic_id(self) -> str | None:
        """Id of the topic's incarnation as the newest metadata tells it, None while they do not."""
        found = self._consumer._cluster.topic_id(self.topic)  # public on the admin client only
        return str(found) if found else None

    @property
    def name(self) -> str:
        """Topic, cluster id and topic id: a topic that was deleted and made again is another feed."""
        now = self._topic_id()
        return self._name if now is None else f"{self.topic}@{self._consumer._cluster.cluster_id}.{now}"

    @property
    def exhausted(self) -> bool:
        """Whether the group has settled and every partition was read up to the end that the broker last told."""
        ends = {p: self._consumer.highwater(TopicPartition(self.topic, p)) for p in self._positions}
        return self._assignments.joined and all(
            end is not None and self._positions[partition] >= end for partition, end in ends.items()
        )

    def poll(self, timeout_s: float) -> Polled:
        try:
            records = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
            revoked, assigned = self._assignments.take()
            for partition in (*revoked, *assigned):
                self._positions.pop(partition, None)
            by_partition = {tp.partition: found for tp, found in records.items()}
            slices = [s for p in list(self._positions) if (s := self._slice(p, by_partition.get(p, [])))]
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            for partition, position in self._positions.items():
                self._check_offset(partition, position)
            raise DataLostError(f"{self._name}: the broker no longer has what comes next: {error}") from error
        except KafkaError as error:
            raise BrokerError(f"reading topic {self.topic} failed: {type(error).__name__}: {error}") from error
        return Polled(revoked, assigned, slices)

    def _slice(self, partition: int, records: Sequence[Any]) -> Slice | None:
        """What the partition gave, up to the consumer's position, which may lie past the last message."""
        start = self._positions[partition]
        position = self._consumer.position(TopicPartition(self.topic, partition), timeout_ms=0)
        until = max(start, records[-1].offset + 1 if records else start, position or 0)
        if until == start:
            return None
        self._positions[partition] = until
        messages = [Message(r.partition, r.offset, r.key, r.value, r.headers or (), max(r.timestamp or 0, 0)) for r in records]
        return Slice(partition, start, until, messages)

    def start(self, partition: int, offset: int | None) -> int:
        tp = TopicPartition(self.topic, partition)
        position = self._check_offset(partition, offset)
        try:
            self._consumer.seek(tp, position)
            if not self._held:
                self._consumer.resume(tp)
        except (ValueError, IllegalStateError) as error:
            if tp in self._consumer.assignment():
                raise
            raise Revoked(f"{self.topic}/{partition}") from error
        self._positions[partition] = position
        return position

    def _check_offset(self, partition: int, offset: int | None) -> int:
        """The offset, or the partition's first where there is none. Raises DataLostError where the broker lacks it."""
        tp = TopicPartition(self.topic, partition)
        try:
            beginning = self._consumer.beginning_offsets([tp])[tp]
            end = self._consumer.end_offsets([tp])[tp]
        except KafkaError as error:
            raise BrokerError(f"the offsets of {self.topic}/{partition} cannot be read: {error}") from error
        position = beginning if offset is None else offset
        if position < beginning:
            raise DataLostError(
                f"{self._name}/{partition}: the archive continues at offset {position}, the broker begins at {beginning}: "
                f"{beginning - position} messages were deleted before they were read"
            )
        if position > end:
            raise DataLostError(
                f"{self._name}/{partition}: the archive continues at offset {position}, the broker ends at {end}: "
                "the broker lost what it had acknowledged"
            )
        return position

    def hold(self, held: bool) -> None:
        """Pause or resume the partitions that were started; what the client has fetched already is kept for later."""
        self._held = held
        mine = self._consumer.assignment() & {TopicPartition(self.topic, p) for p in self._positions}
        if held:
            self._consumer.pause(*mine)
        else:
            self._consumer.resume(*mine)

    def commit(self, offsets: Mapping[int, int]) -> None:
        found = {TopicPartition(self.topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        self._filed |= found
        # Not waited for: a broker that is away must not stop what is already filed, and the next commit says more.
        self._consumer.commit_async(found)

    def close(self) -> None:
        """Leave the group, and tell it once more how far the archive is, as far as the broker will listen."""
        mine = {tp: offset for tp, offset in self._filed.items() if tp.partition in self._positions}
        try:
            if mine:
                self._consumer.commit(mine, timeout_ms=CLOSE_TIMEOUT_MS)
        except KafkaError as error:
            log.warning("the last advisory commit was refused", error=f"{type(error).__name__}: {error}")
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
