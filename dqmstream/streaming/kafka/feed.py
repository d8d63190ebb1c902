"""The partitions of a topic that the consumer group gives to this worker.

What a poll returned passes three questions before it is given out: does it lie in a gap, is the topic still the same one,
and is the feed held? Positions are this feed's own: the client's may run ahead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import IllegalStateError, KafkaError, LogTruncationError, OffsetOutOfRangeError

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.feed import Revoked
from dqmstream.streaming.kafka.advisory_commits import AdvisoryCommits
from dqmstream.streaming.kafka.assignments import Assignments
from dqmstream.streaming.kafka.connection import connect, guarded, is_fatal, reason
from dqmstream.streaming.kafka.freed_memory import keep_freed_memory
from dqmstream.streaming.kafka.topics import missing
from dqmstream.streaming.kafka.workarounds.damaged_batches import survive_damage
from dqmstream.streaming.kafka.workarounds.open_transactions import StableEnds
from dqmstream.streaming.kafka.workarounds.raising_positions import position
from dqmstream.streaming.kafka.workarounds.recreated_topics import Incarnation
from dqmstream.streaming.kafka.workarounds.small_receives import receive_large_pieces
from dqmstream.streaming.kafka.workarounds.stalled_partitions import StallWatch
from dqmstream.streaming.log_limit import LogLimit
from dqmstream.streaming.message import Message, Polled, Slice

log = structlog.get_logger("dqmstream.kafka")

MAX_FETCH_BYTES = 4 * 2**20
CLOSE_TIMEOUT_MS = 5000
CONFIRM_TIMEOUT_S = 1.0
GONE = (KeyError, ValueError, IllegalStateError)
"""What the client raises for a partition that a rebalance took away meanwhile."""


class KafkaFeed:
    """A `Feed` over a Kafka topic.

    client_id: tells other members of the group for which archive this worker reads. instance: name of a static member.
    accept_gap: record offsets that retention deleted before they were read as a gap, and read on. stall_s: how long a
    partition may give nothing although the broker has more. `poll` takes up to a second longer than asked while a broker
    does not confirm the topic. Raises BrokerError where reading cannot go on, DataLostError where the topic was made again.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        instance: str | None = None,
        client_id: str = "dqmstream",
        max_records: int = 256,
        session_timeout_ms: int = 45_000,
        accept_gap: bool = False,
        stall_s: float = 60.0,
    ) -> None:
        self.topic = topic
        self._bootstrap = bootstrap
        self._accept_gap = accept_gap
        self._stall_s = stall_s
        self._positions: dict[int, int] = {}
        self._gaps: dict[int, int] = {}
        self._unconfirmed: list[Slice] = []
        self._held = False
        self._awaits_confirmation = False
        self._polled_at = time.monotonic()
        self._look_at = self._polled_at + stall_s
        self._absent = False
        self._last_error = ""
        self._log_limit = LogLimit()
        self._consumer = connect(
            KafkaConsumer,
            bootstrap,
            group_id=group,
            group_instance_id=instance,
            client_id=client_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=max_records,
            max_partition_fetch_bytes=MAX_FETCH_BYTES,
            fetch_max_bytes=16 * 2**20,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=min(3000, session_timeout_ms // 3),
            allow_auto_create_topics=False,
            metadata_max_age_ms=5000,  # how soon a topic that was made again is noticed where nothing comes of it
        )
        survive_damage(self._consumer, self._last_known_end, self._log_limit)
        self._stable_ends = StableEnds(self._consumer, topic)
        self._stall_watch = StallWatch(self._consumer)
        keep_freed_memory()
        receive_large_pieces(self._consumer)
        self._commits = AdvisoryCommits(self._consumer, topic, self._log_limit)
        self._assignments = Assignments(self._consumer)
        self._consumer.subscribe([topic], listener=self._assignments)
        try:
            with guarded(self._consumer, bootstrap, f"topic {topic} cannot be read"):
                if not self._consumer.partitions_for_topic(topic):
                    raise BrokerError(missing(bootstrap, topic))
        except BrokerError:
            self._consumer.close(autocommit=False)
            raise
        self._incarnation = Incarnation(self._consumer, topic)

    @property
    def name(self) -> str:
        """Topic, cluster id and topic id: a topic that was deleted and made again is another feed.

        Messages that were polled may be filed under this name, whatever becomes of the topic meanwhile.
        """
        return self._incarnation.name

    @property
    def exhausted(self) -> bool:
        """Whether the group has settled and every partition was read up to the end that the broker told last.

        An open transaction is such an end: what lies behind it can be read only once it has ended.
        """
        ends = {p: self._stable_ends.readable(p, end) for p, end in self._last_known_ends().items()}
        return (
            self._assignments.joined
            and self._incarnation.exists
            and not self._unconfirmed
            and not self._gaps
            and all(end is not None and self._positions[partition] >= end for partition, end in ends.items())
        )

    def poll(self, timeout_s: float) -> Polled:
        if self._commits.fenced:
            raise BrokerError(f"another worker reads {self.topic} under the same --instance: give each worker its own")
        records: Mapping[TopicPartition, Sequence[Message]] = {}
        lost = None
        try:
            records = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            lost = error
        except KafkaError as error:
            if is_fatal(error):
                raise BrokerError(f"reading topic {self.topic} failed: {error}") from error
            self._last_error = reason(error)
            self._log_limit.log(log.info, "reading goes on after an error", self._last_error, topic=self.topic)
        revoked, assigned = self._assignments.take()
        self._forget({*revoked, *assigned})
        if lost is not None:
            self._read_on_after(lost)
        self._incarnation.check()
        if not self._held:
            self._unconfirmed += self._take_gaps()
        self._unconfirmed += [
            s for p in list(self._positions) if (s := self._slice(p, records.get(TopicPartition(self.topic, p), ())))
        ]
        slices = self._confirmed()
        self._look_after_partitions()
        return Polled(revoked, assigned, slices)

    def _forget(self, partitions: set[int]) -> None:
        """Forget positions in partitions that a rebalance took away or gave anew."""
        for partition in partitions:
            self._positions.pop(partition, None)
            self._gaps.pop(partition, None)
            self._stall_watch.forget(partition)
        self._stable_ends.forget(partitions)
        self._unconfirmed = [piece for piece in self._unconfirmed if piece.partition not in partitions]

    def _slice(self, partition: int, records: Sequence[Message]) -> Slice | None:
        """What the partition gave, up to the client's position, which may lie past the last message."""
        start = self._positions[partition]
        try:
            reached = position(self._consumer, TopicPartition(self.topic, partition))
        except GONE:
            return None
        until = max(start, records[-1].offset + 1 if records else start, start if reached is None else reached)
        if until == start or partition in self._gaps:
            return None
        self._positions[partition] = until
        return Slice(partition, start, until, records)

    def _take_gaps(self) -> list[Slice]:
        found = []
        for partition, until in self._gaps.items():
            start, self._positions[partition] = self._positions[partition], until
            why = f"retention deleted offsets {start} to {until - 1} before they were read"
            found.append(Slice(partition, start, until, (), gap=why))
        self._gaps.clear()
        return found

    def _confirmed(self) -> list[Slice]:
        """The slices that may be given out, since their topic is known to be the one that the feed is named after.

        The client's metadata may be 5 s old, and it reads on in silence in a topic that was made again. So a broker is asked,
        after the fetch, which topic it has: if that is still the old one, everything that was fetched before is of the old
        one. Each partition's leader is asked, since it learns of the new topic before it serves it. While a leader does not
        answer, what was fetched waits.
        """
        if not self._unconfirmed:  # a rebalance may have taken away what was waiting
            self._await_confirmation(False)
        if self._held or not self._unconfirmed:
            return []
        try:
            self._incarnation.confirm({piece.partition for piece in self._unconfirmed}, CONFIRM_TIMEOUT_S)
        except KafkaError as error:
            self._log_limit.log(log.info, "waiting for the broker to say which topic it has", reason(error), topic=self.topic)
            self._await_confirmation(True)
            return []
        slices, self._unconfirmed = self._unconfirmed, []
        self._await_confirmation(False)
        return slices

    def _await_confirmation(self, awaits: bool) -> None:
        """Fetch no more while what was fetched waits for a broker's answer."""
        if awaits != self._awaits_confirmation:
            self._awaits_confirmation = awaits
            self._pause(self._held or awaits)

    def start(self, partition: int, offset: int | None) -> int:
        tp = TopicPartition(self.topic, partition)
        asked, readable = self._find_start(partition, offset)
        try:
            self._consumer.seek(tp, readable)
            if not (self._held or self._awaits_confirmation):
                self._consumer.resume(tp)
        except GONE as error:
            if tp in self._consumer.assignment():
                raise
            raise Revoked(f"{self.topic}/{partition}") from error
        self._forget({partition})
        self._positions[partition] = asked
        if readable > asked:
            self._gaps[partition] = readable
        return asked

    def _read_on_after(self, error: OffsetOutOfRangeError | LogTruncationError) -> None:
        """The broker does not have the next offset: a gap where that is accepted. Raises DataLostError."""
        refused = error.divergent_offsets if isinstance(error, LogTruncationError) else error.args[0]
        for partition in {tp.partition for tp in refused} & self._positions.keys():
            start, readable = self._find_start(partition, self._positions[partition])
            if readable == start:
                raise DataLostError(
                    f"{self.name}/{partition}: what the broker has from offset {start} on is not what follows the archive: "
                    f"{error}"
                ) from error
            with suppress(*GONE):
                self._consumer.seek(TopicPartition(self.topic, partition), readable)
            self._gaps[partition] = readable

    def _find_start(self, partition: int, offset: int | None) -> tuple[int, int]:
        """The offset that is asked for (None: the first), and the one from which the broker can be read.

        Raises DataLostError where the broker does not have the next offset and that is not accepted.
        """
        tp = TopicPartition(self.topic, partition)
        with guarded(self._consumer, self._bootstrap, f"the offsets of {self.topic}/{partition} cannot be read"):
            beginning = self._consumer.beginning_offsets([tp])[tp]
            end = self._consumer.end_offsets([tp])[tp]
        with suppress(KafkaError):  # every slice is confirmed anyway: this is for a better error where the topic is another one
            self._incarnation.confirm({partition}, CONFIRM_TIMEOUT_S)
        asked = beginning if offset is None else offset
        if asked > end:
            raise DataLostError(
                f"{self.name}/{partition}: the archive continues at offset {asked}, the broker ends at {end}: the broker lost "
                "what it had acknowledged; delete the topic and make it again, which is another feed, to go on"
            )
        if asked < beginning and not self._accept_gap:
            raise DataLostError(
                f"{self.name}/{partition}: the archive continues at offset {asked}, the broker begins at {beginning}: "
                f"{beginning - asked} messages were deleted before they were read; give --accept-gap to record the gap and "
                "go on"
            )
        return asked, max(asked, beginning)

    def _look_after_partitions(self) -> None:
        """Every stall_s: is the topic there, has the group settled, is a transaction open, has a partition stalled?

        Raises BrokerError where the topic is gone, or where a partition gave nothing although the broker has more.
        """
        self._log_limit.log_suppressed()
        now = time.monotonic()
        pause, self._polled_at = now - self._polled_at, now
        if pause > self._stall_s:  # nobody polled, as in a process that was stopped
            self._stall_watch.clear()
            self._look_at = now + self._stall_s
        if now < self._look_at:
            return
        self._look_at = now + self._stall_s
        if not self._incarnation.exists:
            if self._absent:
                raise BrokerError(missing(self._bootstrap, self.topic))
            self._absent = True
            return
        self._absent = False
        if not self._assignments.joined:
            log.warning(
                "the group gives out no partitions: is its coordinator up, and can advertised.listeners be reached?",
                topic=self.topic,
                last_error=self._last_error,
            )
        self._stable_ends.warn_of_stuck(self._positions, self._last_known_ends())
        watched = {TopicPartition(self.topic, p): at for p, at in self._positions.items() if p not in self._gaps}
        if self._held or self._unconfirmed or not watched:
            self._stall_watch.clear()
            return
        for tp, end in self._stall_watch.stalled(watched).items():
            raise BrokerError(
                f"{self.name}/{tp.partition}: nothing came for {self._stall_s:g} s, although offset {watched[tp]} is next and "
                f"the broker ends at {end}; look for errors in the broker's log, and start again"
            )

    def _last_known_ends(self) -> dict[int, int | None]:
        return {p: self._last_known_end(TopicPartition(self.topic, p)) for p in self._positions}

    def _last_known_end(self, tp: TopicPartition) -> int | None:
        """The partition's end as the last fetch told it; None if none did, or the partition is gone."""
        try:
            end: int | None = self._consumer.highwater(tp)
        except GONE:
            return None
        return end

    def hold(self, held: bool) -> None:
        """Pause or resume the partitions that were started; what the client has already fetched is kept for later."""
        self._held = held
        self._stall_watch.clear()
        self._pause(held or self._awaits_confirmation)

    def _pause(self, paused: bool) -> None:
        change = self._consumer.pause if paused else self._consumer.resume
        for partition in self._positions:
            with suppress(*GONE):  # another worker's now: the next poll says so
                change(TopicPartition(self.topic, partition))

    def commit(self, offsets: Mapping[int, int]) -> None:
        self._commits.commit(offsets)

    def close(self) -> None:
        """Leave the group, and commit once more, as far as the broker still answers."""
        self._log_limit.log_suppressed(at_end=True)
        self._stable_ends.warn_of_unread(self._positions, self._last_known_ends())
        self._commits.commit_again(self._positions.keys(), CLOSE_TIMEOUT_MS)
        with suppress(KafkaError):  # a broker that is away forgets this worker by itself
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
