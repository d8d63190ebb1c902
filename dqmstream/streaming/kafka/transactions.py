"""How far partitions can be read while transactions are open on them.

A consumer of committed messages is given nothing from where the first open transaction began, whoever sent it, until it has
ended. The broker tells that offset with each fetch; the client does not keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog
from kafka.consumer.fetcher import Fetcher

log = structlog.get_logger("dqmstream.kafka")


class StableEnds:
    """The last stable offset of each partition of a topic, as the fetches that come through this fetcher tell it."""

    def __init__(self, fetcher: Fetcher, topic: str) -> None:
        self._topic = topic
        self._ends: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._told: set[tuple[int, int]] = set()
        self._parse: Callable[[Any], Any] = fetcher._parse_fetched_data
        fetcher._parse_fetched_data = self._note

    def _note(self, fetched: Any) -> Any:
        """What the client's own method does, and a note of the offset."""
        stable = fetched.partition_data.last_stable_offset
        if stable >= 0:  # -1 where the broker does not tell
            self._ends[fetched.topic_partition.partition] = stable
        return self._parse(fetched)

    def forget(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._ends.pop(partition, None)
            self._seen.pop(partition, None)

    def readable(self, partition: int, end: int | None) -> int | None:
        """Where reading ends for now. end: of the partition, None if it is not known."""
        return end if end is None else min(end, self._ends.get(partition, end))

    def look(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> None:
        """Warn, once for each, of a transaction that was open at the look before this one too."""
        held_back = self._held_back(positions, ends)
        for partition, offset in held_back.items():
            if self._seen.get(partition) == offset and (partition, offset) not in self._told:
                self._told.add((partition, offset))
                self._tell(
                    "nothing behind an open transaction can be read: find its producer, or abort it by kafka-transactions.sh",
                    partition,
                    offset,
                    ends,
                )
        self._seen = held_back

    def tell_unread(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> None:
        """Warn of what was not read because a transaction is open, where reading ends."""
        for partition, offset in self._held_back(positions, ends).items():
            self._tell("what lies behind an open transaction was not read, and will be next time", partition, offset, ends)

    def _held_back(self, positions: Mapping[int, int], ends: Mapping[int, int | None]) -> dict[int, int]:
        """By partition, the offset of an open transaction up to which all was read."""
        found = {}
        for partition, position in positions.items():
            end = ends.get(partition)
            if end is not None and self._ends.get(partition, end) == position < end:
                found[partition] = position
        return found

    def _tell(self, what: str, partition: int, offset: int, ends: Mapping[int, int | None]) -> None:
        waiting = (ends[partition] or 0) - offset
        log.warning(what, topic=self._topic, partition=partition, began_at=offset, offsets_behind=waiting)
