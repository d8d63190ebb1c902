"""Up to which offset a partition can be read while transactions are open on it.

Mended: a consumer of committed messages gets nothing from the offset on where the first open transaction began, whoever sent
it, until that has ended. The broker tells this offset (the last stable offset) with each fetch, and the client drops it.
Seen with kafka-python 3.0.12. Not reported upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog
from kafka import KafkaConsumer

from dqmstream.streaming.kafka.workarounds import private_names

log = structlog.get_logger("dqmstream.kafka")


class StableEnds:
    """The last stable offset of each partition of a topic, as a consumer's fetches tell it."""

    def __init__(self, consumer: KafkaConsumer, topic: str) -> None:
        self._topic = topic
        self._ends: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._warned: set[tuple[int, int]] = set()
        fetcher = private_names.fetcher(consumer)
        self._parse: Callable[[Any], Any] = fetcher._parse_fetched_data
        fetcher._parse_fetched_data = self._note

    def _note(self, fetched: Any) -> Any:
        """The client's own method, after the offset was noted."""
        stable = fetched.partition_data.last_stable_offset
        if stable >= 0:  # -1 where the broker does not tell
            self._ends[fetched.topic_partition.partition] = stable
        return self._parse(fetched)

    def forget(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._ends.pop(partition, None)
            self._seen.pop(partition, None)

    def readable(self, partition: int, end: int | None) -> int | None:
        """Up to which offset the partition can be read now. end: its end, None if that is not known."""
        return end if end is None else min(end, self._ends.get(partition, end))

    def warn_of_stuck(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> None:
        """Warn, once for each, of an open transaction that held reading back at the previous call too."""
        held_back = self._held_back(positions, ends)
        for partition, offset in held_back.items():
            if self._seen.get(partition) == offset and (partition, offset) not in self._warned:
                self._warned.add((partition, offset))
                self._warn(
                    "nothing behind an open transaction can be read: find its producer, or abort it by kafka-transactions.sh",
                    partition,
                    offset,
                    ends,
                )
        self._seen = held_back

    def warn_of_unread(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> None:
        """Warn of what was not read because a transaction is open, when reading ends."""
        for partition, offset in self._held_back(positions, ends).items():
            self._warn("what lies behind an open transaction was not read, and will be next time", partition, offset, ends)

    def _held_back(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> dict[int, int]:
        """By partition, the offset of an open transaction up to which everything was read."""
        found = {}
        for partition, position in positions.items():
            end = ends.get(partition)
            if end is not None and self._ends.get(partition, end) == position < end:
                found[partition] = position
        return found

    def _warn(self, event: str, partition: int, offset: int, ends: Mapping[int, int | None]) -> None:
        waiting = (ends[partition] or 0) - offset
        log.warning(event, topic=self._topic, partition=partition, began_at=offset, offsets_behind=waiting)
