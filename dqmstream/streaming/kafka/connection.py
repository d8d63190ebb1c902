"""Connections to a broker, and their errors as a BrokerError that says what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka.errors import CorruptRecordError, KafkaError

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka.workarounds.failed_bootstraps import explained
from dqmstream.streaming.kafka.workarounds.unreached_brokers import hint

T = TypeVar("T")

BOOTSTRAP_TIMEOUT_MS = 10_000
CLIENT_SETTINGS = {
    "client_id": "dqmstream",
    "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
    "reconnect_backoff_max_ms": 1000,
}


def is_fatal(error: KafkaError) -> bool:
    """Whether reading cannot go on after the error.

    Some errors pass: a broker that is away, a coordinator that moves, a batch that the broker finds damaged. All others need
    a person: missing rights, a wrong password, an instance name that another worker took.
    """
    return not (error.retriable or isinstance(error, CorruptRecordError))


def connect(make: Callable[..., T], bootstrap: str, **settings: Any) -> T:
    """A consumer, producer or admin client. Raises BrokerError where no broker answers."""
    with explained(bootstrap):
        return make(bootstrap_servers=bootstrap.split(","), **{**CLIENT_SETTINGS, **settings})


@contextmanager
def guarded(client: Any, bootstrap: str, what: str, passed: tuple[type[KafkaError], ...] = ()) -> Iterator[None]:
    """Turn the errors of a connected client into a BrokerError.

    client: a consumer, producer or admin client. what: what failed, a sentence without its end. passed: errors that are
    raised as they are.
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
