"""What a rebalance gave to this worker and took from it.

kafka-python 3 runs its I/O on a thread of its own and reports a rebalance there, where nothing may block. So the listener
only pauses partitions and takes notes; the polling thread asks the archive, seeks and resumes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener


class Assignments(ConsumerRebalanceListener):
    """Notes of the I/O thread for the polling thread. joined: whether the group has given partitions out."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self.joined = False
        self._consumer = consumer
        self._lock = threading.Lock()
        self._revoked: list[int] = []
        self._assigned: list[int] = []

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        with self._lock:
            gone = [tp.partition for tp in revoked]
            self.joined = False
            self._assigned = [p for p in self._assigned if p not in gone]
            self._revoked += gone

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
        for tp in assigned:
            self._consumer.seek(tp, 0)  # without a position the client asks for the group's commits, or raises
        with self._lock:
            self.joined = True
            self._assigned += [tp.partition for tp in assigned]

    def take(self) -> tuple[list[int], list[int]]:
        """Partitions that were revoked and assigned since the last call."""
        with self._lock:
            noted = self._revoked, self._assigned
            self._revoked, self._assigned = [], []
        return noted
