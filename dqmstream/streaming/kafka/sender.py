"""Sending messages to a topic, acknowledged by all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka.connection import connect, reason
from dqmstream.streaming.kafka.workarounds.split_batches import wait_for_acknowledgements
from dqmstream.streaming.kafka.workarounds.unreached_brokers import hint

MAX_REQUEST_BYTES = 16 * 2**20
DELIVERY_TIMEOUT_MS = 120_000
ACKNOWLEDGE_TIMEOUT_S = DELIVERY_TIMEOUT_MS / 1000 + 10
"""Longer than the producer itself tries, so that its own error is raised first."""


class TooLargeError(BrokerError):
    """A message is larger than the topic accepts."""


class KafkaSender:
    """Sends messages to a topic; `flush` returns when all replicas have acknowledged them, or raises BrokerError."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.topic = topic
        self._bootstrap = bootstrap
        self._futures: list[Any] = []
        self._producer = connect(
            KafkaProducer,
            bootstrap,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            linger_ms=5,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            batch_size=256 * 2**10,
            max_request_size=MAX_REQUEST_BYTES,
            allow_auto_create_topics=False,
        )

    def send(self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        """Hand a message to the producer. Raises TooLargeError, BrokerError."""
        try:
            self._futures.append(self._producer.send(self.topic, value=value, key=key, headers=list(headers)))
        except MessageSizeTooLargeError as error:
            raise TooLargeError(f"a message is too large for topic {self.topic}: {error}") from error
        except KafkaError as error:
            raise self._failure(f"sending to topic {self.topic} failed", error) from error
        if len(self._futures) >= 4096:
            self.flush()

    def flush(self) -> None:
        """Wait until all messages were acknowledged. Raises TooLargeError, BrokerError.

        Of several errors the one of the size is raised: the others follow from it.
        """
        futures, self._futures = self._futures, []
        errors = wait_for_acknowledgements(futures, ACKNOWLEDGE_TIMEOUT_S)
        for cause in errors:
            if isinstance(cause, (MessageSizeTooLargeError, RecordListTooLargeError)):
                raise TooLargeError(f"topic {self.topic} does not take a message of that size: {cause}") from cause
        if errors:
            raise self._failure(f"topic {self.topic} did not acknowledge", errors[0]) from errors[0]

    def _failure(self, what: str, error: KafkaError) -> BrokerError:
        return BrokerError(f"{what}: {reason(error)}{hint(self._producer, self._bootstrap, error)}")

    def close(self) -> None:
        self._producer.close()
