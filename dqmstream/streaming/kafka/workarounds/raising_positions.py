"""A consumer's position without the errors that belong to the next poll.

Mended: `KafkaConsumer.position` asks brokers and raises what they answer (an offset that is gone, a truncated log), when the
records of the last poll are already in hand and would be lost with the exception. Seen with kafka-python 3.0.12. Not
reported upstream.
"""

from __future__ import annotations

from kafka import KafkaConsumer, TopicPartition

from dqmstream.streaming.kafka.workarounds import private_names


def position(consumer: KafkaConsumer, tp: TopicPartition) -> int | None:
    """The offset that is read next, None if it is not known. Raises KeyError where the partition is no longer assigned."""
    found = private_names.subscription(consumer).position(tp)
    return found.offset if found else None
