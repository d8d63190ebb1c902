"""Connections to a broker, and what goes wrong on them, told as one error that says why and what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka.errors import (
    CorruptRecordError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
)

from dqmstream.errors import BrokerError

T = TypeVar("T")

BOOTSTRAP_TIMEOUT_MS = 10_000
CLIENT = {
    "client_id": "dqmstream",
    "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
    "reconnect_backoff_max_ms": 1000,
}


UNREACHED = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError)
"""What the client raises where a broker does not answer."""


def is_fatal(error: KafkaError) -> bool:
    """Whether reading cannot go on after it.

    What passes by itself is not fatal (a broker that is away, a coordinator that moves, a batch that the broker finds damaged).
    All else that the client raises needs a person: rights, a password, a name that another worker took.
    """
    return not (error.retriable or isinstance(error, CorruptRecordError))


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
        return make(bootstrap_servers=bootstrap.split(","), **{**CLIENT, **settings})


@contextmanager
def guarded(client: Any, bootstrap: str, what: str, passed: tuple[type[KafkaError], ...] = ()) -> Iterator[None]:
    """Turn the errors of a client that has connected into a BrokerError.

    client: a consumer, producer or admin client. what: what is not done then, as a sentence without an end. passed: errors
    that are left as they are.
    """
    try:
        yield
    except passed:
        raise
    except KafkaError as error:
        raise BrokerError(f"{what}: {reason(error)}{hint(client, bootstrap, error)}") from error


def reason(error: KafkaError) -> str:
    """The client's words without the names of its classes, where it has any."""
    return " ".join(str(part) for part in error.args) or str(error) or type(error).__name__


def hint(client: Any, bootstrap: str, error: KafkaError) -> str:
    """What to do where a broker was not reached at the address that the cluster gives it."""
    if not isinstance(error, UNREACHED):
        return ""
    cluster = client._metadata if hasattr(client, "_metadata") else client._manager.cluster
    named = ", ".join(sorted(f"{broker.host}:{broker.port}" for broker in cluster.brokers()))
    return (
        f"; {bootstrap} answered, and says that its brokers are at {named or 'no address'}: they must be up, and "
        "advertised.listeners in their settings must be addresses that this machine can reach"
    )
