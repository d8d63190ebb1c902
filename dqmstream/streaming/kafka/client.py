"""Connections to a broker, and the topics on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError, TopicAlreadyExistsError

from dqmstream.errors import BrokerError

T = TypeVar("T")

BOOTSTRAP_TIMEOUT_MS = 10_000
CLIENT = {
    "client_id": "dqmstream",
    "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
    "reconnect_backoff_max_ms": 1000,
}


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


def connect(make: Callable[..., T], bootstrap: str, **settings: Any) -> T:
    with _explained(bootstrap):
        return make(bootstrap_servers=bootstrap.split(","), **CLIENT, **settings)


def check_broker(bootstrap: str) -> None:
    """Raise BrokerError if no broker answers there."""
    connect(KafkaAdminClient, bootstrap).close()


def create_topic(
    bootstrap: str, topic: str, partitions: int, settings: Mapping[str, str] | None = None, *, exist_ok: bool = False
) -> bool:
    """Make a topic with as many replicas as the broker does by default. False if it stands already and exist_ok.

    Raises BrokerError where the broker cannot be reached, refuses, or has the topic and exist_ok is not given.
    """
    admin = connect(KafkaAdminClient, bootstrap)
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
    consumer = connect(KafkaConsumer, bootstrap, allow_auto_create_topics=False)
    try:
        if topic not in consumer.topics():
            raise BrokerError(missing(bootstrap, topic))
        return len(consumer.partitions_for_topic(topic))
    finally:
        consumer.close()


def missing(bootstrap: str, topic: str) -> str:
    return f"{bootstrap} has no topic {topic}: make it, or start `dqmstream publish --create` first"
