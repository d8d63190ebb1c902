"""Partitions of which nothing comes any more, although the broker has more.

Mended: a client that has stopped reading a partition polls on without an error, which looks like a topic on which nothing
happens. Seen with kafka-python 3.0.12 after an exception in its reader; reported for other causes as dpkp/kafka-python issues
3106 (one batch, then nothing) and 3131 (no records after a rebalance), both closed.
"""

from __future__ import annotations

from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

END_TIMEOUT_MS = 2000


class StallWatch:
    """Compares positions with the broker's ends at each call of `stalled`."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._behind: dict[int, int] = {}

    def forget(self, partition: int) -> None:
        self._behind.pop(partition, None)

    def clear(self) -> None:
        """Start anew: nothing was to be read since the last call."""
        self._behind.clear()

    def stalled(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The broker's ends of partitions that stand where they stood at the last call, when the broker had more."""
        try:
            ends = self._consumer.end_offsets(list(positions), timeout_ms=END_TIMEOUT_MS)
        except KafkaError:  # a broker that is away is waited for
            self.clear()
            return {}
        found = {tp: ends[tp] for tp, position in positions.items() if self._behind.get(tp.partition) == position}
        self._behind = {tp.partition: position for tp, position in positions.items() if (ends[tp] or 0) > position}
        return found
