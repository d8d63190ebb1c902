"""The group's committed offsets: how far the archive is, for monitors. Where to read on, the archive alone says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import FencedInstanceIdError, KafkaError
from kafka.structs import OffsetAndMetadata

from dqmstream.streaming.kafka.connection import reason
from dqmstream.streaming.log_limit import LogLimit

log = structlog.get_logger("dqmstream.kafka")


class AdvisoryCommits:
    """Commits to the consumer's group, none of which is waited for but the last.

    fenced: whether another worker has taken this one's instance name. The client tells it in no other way.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str, log_limit: LogLimit) -> None:
        self.fenced = False
        self._consumer = consumer
        self._topic = topic
        self._log_limit = log_limit
        self._last: dict[TopicPartition, OffsetAndMetadata] = {}

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit the offsets of these partitions. A broker that is away does not hold up filing; the next commit says more."""
        found = {TopicPartition(self._topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        self._last |= found
        try:
            self._consumer.commit_async(found)
        except KafkaError as error:  # of an earlier commit
            self.fenced |= isinstance(error, FencedInstanceIdError)
            self._log_limit.log(log.info, "an advisory commit was refused", reason(error), topic=self._topic)

    def commit_again(self, partitions: Collection[int], timeout_ms: int) -> None:
        """Commit the last offsets of these partitions once more, and wait."""
        mine = {tp: offset for tp, offset in self._last.items() if tp.partition in partitions}
        try:
            if mine:
                self._consumer.commit(mine, timeout_ms=timeout_ms)
        except KafkaError as error:
            log.warning("the last advisory commit was refused", error=f"{type(error).__name__}: {error}")
