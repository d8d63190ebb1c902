"""Kafka at the edge: the only file that knows the client library and its traps.

kafka-python 3 runs its I/O on a thread of its own. A rebalance is told on that thread, where nothing may block, so the
listener only pauses and takes notes; the polling thread asks the archive, seeks and resumes. A record error (bad CRC,
missing codec) would make the next poll spin for ever, so it ends the feed loudly at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, TypeVar

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    LogTruncationError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
)
from kafka.structs import OffsetAndMetadata

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.feed import DeadLetter, Message, Polled, Revoked, Slice

log = structlog.get_logger("dqmstream.kafka")

T = TypeVar("T")

BOOTSTRAP_TIMEOUT_MS = 10_000
CLIENT = {
    "client_id": "dqmstream",
    "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
    "reconnect_backoff_max_ms": 1000,
}
MAX_MESSAGE_BYTES = 4 * 2**20
MAX_LETTER_BYTES = 16 * 2**20
MAX_LETTER_HEADERS = 64
TRUNCATED_BYTES = 64 * 2**10
CLOSE_TIMEOUT_MS = 5000


class _LastWords(logging.Handler):
    """Keeps the client's warnings: why a connection failed stands only there, the exception says `Unable to bootstrap`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _explained(bootstrap: str) -> Iterator[None]:
    """Turn the client's errors into a BrokerError that says the reason."""
    logger = logging.getLogger("kafka")
    last_words = _LastWords()
    logger.addHandler(last_words)
    try:
        yield
    except (KafkaError, OSError) as error:
        why = last_words.said[-1] if last_words.said else str(error) or type(error).__name__
        raise BrokerError(f"no Kafka broker answers at {bootstrap}: {why}; is it running, and is --bootstrap right?") from error
    finally:
        logger.removeHandler(last_words)


def _connect(make: Callable[..., T], bootstrap: str, **settings: Any) -> T:
    with _explained(bootstrap):
        return make(bootstrap_servers=bootstrap.split(","), **CLIENT, **settings)


def check_broker(bootstrap: str) -> None:
    """Raise BrokerError if no broker answers there."""
    _connect(KafkaAdminClient, bootstrap).close()


def create_topic(
    bootstrap: str, topic: str, partitions: int, settings: Mapping[str, str] | None = None, *, exist_ok: bool = False
) -> bool:
    """Make a topic with as many replicas as the broker does by default. False if it stands already and exist_ok.

    Raises BrokerError where the broker cannot be reached, refuses, or has the topic and exist_ok is not given.
    """
    admin = _connect(KafkaAdminClient, bootstrap)
    try:
        admin.create_topics({topic: {"num_partitions": partitions, "configs": dict(settings or {})}}, wait_for_metadata=True)
    except TopicAlreadyExistsError as error:
        if not exist_ok:
            raise BrokerError(f"topic {topic} exists already on {bootstrap}: leave out --create") from error
        return False
    except KafkaError as error:
        raise BrokerError(f"topic {topic} could not be made on {bootstrap}: {error}") from error
    finally:
        admin.close()
    return True


def check_topic(bootstrap: str, topic: str) -> int:
    """Number of partitions of the topic. Raises BrokerError if the broker has none of that name."""
    consumer = _connect(KafkaConsumer, bootstrap, allow_auto_create_topics=False)
    try:
        if topic not in consumer.topics():
            raise BrokerError(_missing(bootstrap, topic))
        return len(consumer.partitions_for_topic(topic))
    finally:
        consumer.close()


def _missing(bootstrap: str, topic: str) -> str:
    return f"{bootstrap} has no topic {topic}: make it, or start `dqmstream publish --create` first"


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
        self._consumer = _connect(
            KafkaConsumer,
            bootstrap,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=max_records,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
            fetch_max_bytes=16 * 2**20,
            session_timeout_ms=session_timeout_ms,
            allow_auto_create_topics=False,
            metadata_max_age_ms=5000,  # how soon a topic that was made again is noticed
        )
        self._assignments.consumer = self._consumer
        self._consumer.subscribe([topic], listener=self._assignments)
        if not self._consumer.partitions_for_topic(topic):
            self._consumer.close(autocommit=False)
            raise BrokerError(_missing(bootstrap, topic))
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


class KafkaDeadLetters:
    """Dead letters in a topic of their own, acknowledged by all replicas before anything is filed past them.

    A letter that the topic does not take whole, because its headers come on top of a message of the greatest size, is sent
    with its first 64 KiB, the size and the SHA-256 of the rest; the message itself stays at its offset for as long as
    the broker keeps it.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        create_topic(bootstrap, topic, 1, {"max.message.bytes": str(MAX_LETTER_BYTES)}, exist_ok=True)
        self.topic = topic
        self._bootstrap = bootstrap
        self._sender = KafkaSender(bootstrap, topic)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._send(letters)
        except TooLargeError:
            self._renew()
            # One of them; those that were taken come once more, under the same keys.
            for letter in letters:
                try:
                    self._send([letter])
                except TooLargeError:
                    self._renew()
                    self._send_truncated(letter)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._sender.send(letter.key.encode(), letter.message.value, _letter_headers(letter, MAX_LETTER_BYTES))
        self._sender.flush()

    def _send_truncated(self, letter: DeadLetter) -> None:
        value = letter.message.value or b""
        size = [("size", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode())]
        headers = [*_letter_headers(letter, 256), ("truncated", b"true"), *size]
        self._sender.send(letter.key.encode(), value[:TRUNCATED_BYTES], headers)
        self._sender.flush()

    def _renew(self) -> None:
        """A producer that keeps order is of no use after an error."""
        self._sender.close()
        self._sender = KafkaSender(self._bootstrap, self.topic)

    def close(self) -> None:
        self._sender.close()


def _letter_headers(letter: DeadLetter, longest: int) -> list[tuple[str, bytes]]:
    """Where the message lay and why it is dead, then its own key and headers; longest: bytes of each, and of the reason."""
    message = letter.message
    headers = [
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % message.partition),
        ("offset", b"%d" % message.offset),
        ("timestamp_ms", b"%d" % message.timestamp_ms),
        ("reason", letter.reason.encode()),
    ]
    if message.key is not None:
        headers.append(("original.key", message.key))
    # Kafka tells a header without a value apart from an empty one, the client cannot send it.
    headers += [(f"original.{name}"[:longest], value or b"") for name, value in message.headers]
    return [(name, value[:longest]) for name, value in headers[:MAX_LETTER_HEADERS]]


class TooLargeError(BrokerError):
    """A message is larger than the topic takes."""


class KafkaSender:
    """Sends messages to a topic; `flush` returns when all were acknowledged by all replicas, or raises BrokerError."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.topic = topic
        self._futures: list[Any] = []
        self._producer = _connect(
            KafkaProducer,
            bootstrap,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            linger_ms=5,
            batch_size=256 * 2**10,
            max_request_size=MAX_LETTER_BYTES,
            allow_auto_create_topics=False,
        )

    def send(self, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        """Hand a message to the producer. Raises TooLargeError, BrokerError."""
        try:
            self._futures.append(self._producer.send(self.topic, value=value, key=key, headers=list(headers)))
        except MessageSizeTooLargeError as error:
            raise TooLargeError(f"a message is too large for topic {self.topic}: {error}") from error
        except KafkaError as error:
            raise BrokerError(f"sending to topic {self.topic} failed: {error}") from error
        if len(self._futures) >= 4096:
            self.flush()

    def flush(self) -> None:
        """Wait until all was acknowledged. Raises TooLargeError, BrokerError."""
        futures, self._futures = self._futures, []
        try:
            self._producer.flush()
            for future in futures:
                future.get(timeout=0)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise TooLargeError(f"topic {self.topic} does not take a message of that size: {error}") from error
        except KafkaError as error:
            raise BrokerError(f"topic {self.topic} did not acknowledge: {error}") from error

    def close(self) -> None:
        self._producer.close()
