"""Kafka at the edge: the only room that knows the client library and its traps."""

from dqmstream.streaming.kafka.dead_letter_record import MAX_LETTER_BYTES
from dqmstream.streaming.kafka.dead_letters import KafkaDeadLetters
from dqmstream.streaming.kafka.feed import KafkaFeed
from dqmstream.streaming.kafka.groups import warn_of_others
from dqmstream.streaming.kafka.sender import KafkaSender
from dqmstream.streaming.kafka.topics import check_broker, check_codecs, check_topic, create_topic

__all__ = [
    "MAX_LETTER_BYTES",
    "KafkaDeadLetters",
    "KafkaFeed",
    "KafkaSender",
    "check_broker",
    "check_codecs",
    "check_topic",
    "create_topic",
    "warn_of_others",
]
