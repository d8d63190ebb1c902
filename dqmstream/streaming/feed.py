"""The source of messages that ingest reads from: partitions, each read from the offset that the archive names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dqmstream.streaming.message import Polled


class Revoked(Exception):
    """The partition was given to another worker before reading it started here."""


class Feed(Protocol):
    """A topic's partitions, as one worker reads them.

    `streaming.kafka.KafkaFeed` reads a Kafka topic; `streaming.in_process.InProcessFeed` needs no broker.

    name: identifies the topic's incarnation and never changes. A topic that was deleted and made again is another feed: a
    feed raises DataLostError rather than return messages of another incarnation.
    """

    @property
    def name(self) -> str: ...

    @property
    def exhausted(self) -> bool:
        """Whether this worker has read all that its partitions are known to hold; False until it knows its partitions."""
        ...

    def poll(self, timeout_s: float) -> Polled:
        """Wait up to timeout_s for messages. An assigned partition returns none before `start` is called for it."""
        ...

    def start(self, partition: int, offset: int | None) -> int:
        """Read the partition from this offset on (None: from its first message); returns the offset where it starts.

        Raises DataLostError where the feed does not have that offset, Revoked where the partition is gone again.
        """
        ...

    def hold(self, held: bool) -> None:
        """Return no messages until held is False again. Polling goes on, so that the worker stays in its group."""
        ...

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Report the archive's next offset of each partition. Monitors use it; the archive alone says where to read on."""
        ...

    def close(self) -> None: ...
