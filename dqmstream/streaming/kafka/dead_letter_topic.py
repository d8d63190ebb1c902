"""Reading dead letters from their topic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import structlog
from kafka import KafkaConsumer, TopicPartition

from dqmstream.errors import BrokerError, InputError
from dqmstream.streaming.kafka.connection import connect, guarded
from dqmstream.streaming.kafka.dead_letter_record import StoredLetter, parse_letter
from dqmstream.streaming.kafka.workarounds.damaged_batches import survive_damage
from dqmstream.streaming.message import Message

READ_TIMEOUT_S = 30.0
"""Longest that reading waits for a record, when the broker said that there are more."""

log = structlog.get_logger("dqmstream.kafka")


def read_letters(bootstrap: str, topic: str) -> Iterator[StoredLetter]:
    """All dead letters that the topic holds now, as they come; what arrives meanwhile is left for the next call.

    A letter that was written twice comes twice. Records that are no letters are left out, with a warning at the end.
    Raises BrokerError where the topic is missing, cannot be read, or gives nothing for 30 s.
    """
    consumer = connect(
        KafkaConsumer, bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", allow_auto_create_topics=False
    )
    survive_damage(consumer, consumer.highwater)
    foreign = 0
    try:
        with guarded(consumer, bootstrap, f"topic {topic} cannot be read"):
            if topic not in consumer.topics():
                raise BrokerError(
                    f"{bootstrap} has no topic {topic}: no letter was ever written, or --dead-letter-topic is another"
                )
            for message in _messages(consumer, bootstrap, topic):
                letter = None if message.error else parse_letter(message.key, message.value, message.headers)
                if letter is None:
                    foreign += 1
                else:
                    yield letter
    finally:
        consumer.close(autocommit=False)
    if foreign:
        log.warning("records that are not dead letters were left out", topic=topic, records=foreign)


def _messages(consumer: KafkaConsumer, bootstrap: str, topic: str) -> Iterator[Message]:
    """All that the topic holds now. Raises BrokerError where nothing comes for READ_TIMEOUT_S."""
    assigned = [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(assigned)
    ends = consumer.end_offsets(assigned)
    for tp, beginning in consumer.beginning_offsets(assigned).items():
        consumer.seek(tp, beginning)
    last_news = time.monotonic()
    while any(consumer.position(tp) < ends[tp] for tp in assigned):
        records = consumer.poll(timeout_ms=1000)
        if records:
            last_news = time.monotonic()
        elif time.monotonic() > last_news + READ_TIMEOUT_S:
            raise BrokerError(f"{bootstrap} gives nothing of topic {topic} for {READ_TIMEOUT_S:.0f} s, although it holds more")
        for tp, found in records.items():
            yield from (message for message in found if message.offset < ends[tp])


def list_letters(bootstrap: str, topic: str) -> list[StoredLetter]:
    """Each dead letter that the topic holds once, the oldest message first. Raises BrokerError.

    Value and key are empty and headers left out, since a topic may hold more than fits into memory.
    """
    found: dict[str, StoredLetter] = {}
    for letter in read_letters(bootstrap, topic):
        if letter.key not in found or found[letter.key].cut:  # written twice, it may be whole the second time
            found[letter.key] = replace(
                letter, value=_emptied(letter.value), original_key=_emptied(letter.original_key), headers=()
            )
    return sorted(found.values(), key=lambda letter: (letter.timestamp_ms, letter.topic, letter.partition, letter.offset))


def _emptied(data: bytes | None) -> bytes | None:
    return None if data is None else b""


def find_letter(bootstrap: str, topic: str, key: str) -> StoredLetter:
    """The dead letter of that key, a whole one if there is one. Raises InputError if there is none, BrokerError."""
    best = None
    for letter in read_letters(bootstrap, topic):
        if letter.key == key and (best is None or best.cut):
            best = letter
    if best is None:
        raise unknown_key(topic, key)
    return best


def unknown_key(topic: str, key: str) -> InputError:
    return InputError(f"topic {topic} holds no letter {key}: see `dqmstream deadletters list`")
