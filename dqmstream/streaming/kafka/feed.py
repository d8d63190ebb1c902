"""The partitions of a topic, as the consumer group gives them out.

kafka-python 3 runs its I/O on a thread of its own. A rebalance is told on that thread, where nothing may block, so the
listener only pauses and takes notes; the polling thread asks the archive, seeks and resumes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import FencedInstanceIdError, IllegalStateError, KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.feed import Revoked
from dqmstream.streaming.kafka.batches import BatchReader, Suspects
from dqmstream.streaming.kafka.client import Incarnation, missing
from dqmstream.streaming.kafka.connection import connect, guarded, is_fatal, reason
from dqmstream.streaming.kafka.receiving import keep_freed_memory, receive_largely
from dqmstream.streaming.kafka.transactions import StableEnds
from dqmstream.streaming.log_limit import Repeats
from dqmstream.streaming.message import Message, Polled, Slice

log = structlog.get_logger("dqmstream.kafka")

MAX_FETCH_BYTES = 4 * 2**20
CLOSE_TIMEOUT_MS = 5000
CONFIRM_TIMEOUT_S = 1.0
LOOK_TIMEOUT_MS = 2000
GONE = (KeyError, ValueError, IllegalStateError)
"""What the client raises for a partition that a rebalance took away meanwhile."""


class _Assignments(ConsumerRebalanceListener):
    """Notes of the I/O thread for the polling thread."""

    def __init__(self) -> None:
        self.consumer: KafkaConsumer | None = None
        self._lock = threading.Lock()
        self._revoked: list[int] = []
        self._assigned: list[int] = []
        self.joined = False

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        with self._lock:
            gone = [tp.partition for tp in revoked]
            self.joined = False
            self._assigned = [p for p in self._assigned if p not in gone]
            self._revoked += gone

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        assert self.consumer is not None
        self.consumer.pause(*assigned)
        for tp in assigned:
            self.consumer.seek(tp, 0)  # a place to stand: without one the client asks for the group's commits, or raises
        with self._lock:
            self.joined = True
            self._assigned += [tp.partition for tp in assigned]

    def take(self) -> tuple[list[int], list[int]]:
        with self._lock:
            noted = self._revoked, self._assigned
            self._revoked, self._assigned = [], []
        return noted


class KafkaFeed:
    """The partitions of a topic that the consumer group gives to this worker.

    client_id: tells others in the group for which archive this worker reads. accept_gap: record what retention deleted
    before it was read, and go on. stall_s: how long a partition may give nothing although the broker has more. `poll` takes
    up to a second longer than asked while a broker does not say which topic it reads from. Raises BrokerError where reading
    cannot go on, DataLostError where the topic was made again.
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
        self._missing = missing(bootstrap, topic)
        self._assignments = _Assignments()
        self._positions: dict[int, int] = {}
        self._gaps: dict[int, int] = {}
        self._unconfirmed: list[Slice] = []
        self._filed: dict[TopicPartition, OffsetAndMetadata] = {}
        self._held = False
        self._waits = False
        self._fenced = False
        self._polled_at = time.monotonic()
        self._look_at = self._polled_at + stall_s
        self._behind: dict[int, int] = {}
        self._absent = False
        self._last_error = ""
        self._repeats = Repeats()
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
        fetcher = self._consumer._fetcher
        fetcher.PartitionRecords = partial(BatchReader, Suspects(self._repeats), self._told_end)
        self._stable_ends = StableEnds(fetcher, topic)
        keep_freed_memory()
        receive_largely(self._consumer)
        self._assignments.consumer = self._consumer
        self._consumer.subscribe([topic], listener=self._assignments)
        try:
            with guarded(self._consumer, bootstrap, f"topic {topic} cannot be read"):
                if not self._consumer.partitions_for_topic(topic):
                    raise BrokerError(self._missing)
        except BrokerError:
            self._consumer.close(autocommit=False)
            raise
        self._incarnation = Incarnation(self._consumer, topic)

    @property
    def name(self) -> str:
        """Topic, cluster id and topic id: a topic that was deleted and made again is another feed.

        It never changes, since nothing is given out that is not of this incarnation: what was polled may be filed under
        this name, whatever becomes of the topic meanwhile.
        """
        return self._incarnation.name

    @property
    def exhausted(self) -> bool:
        """Whether the group has settled and every partition was read up to the end that the broker last told.

        Where a transaction is open that is where it began: what lies behind can be read only once it has ended.
        """
        ends = {p: self._stable_ends.readable(p, end) for p, end in self._told_ends().items()}
        return (
            self._assignments.joined
            and self._incarnation.exists
            and not self._unconfirmed
            and not self._gaps
            and all(end is not None and self._positions[partition] >= end for partition, end in ends.items())
        )

    def poll(self, timeout_s: float) -> Polled:
        if self._fenced:
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
            self._repeats.tell(log.info, "reading goes on", self._last_error, topic=self.topic)
        revoked, assigned = self._assignments.take()
        self._forget({*revoked, *assigned})
        if lost is not None:
            self._go_on_after(lost)
        self._incarnation.check()
        if not self._held:
            self._unconfirmed += self._take_gaps()
        self._unconfirmed += [
            s for p in list(self._positions) if (s := self._slice(p, records.get(TopicPartition(self.topic, p), ())))
        ]
        slices = self._confirmed()
        self._look(slices)
        return Polled(revoked, assigned, slices)

    def _forget(self, partitions: set[int]) -> None:
        """What a rebalance took away, or gave anew, is not read on from where it was."""
        for partition in partitions:
            self._positions.pop(partition, None)
            self._gaps.pop(partition, None)
            self._behind.pop(partition, None)
        self._stable_ends.forget(partitions)
        self._unconfirmed = [piece for piece in self._unconfirmed if piece.partition not in partitions]

    def _slice(self, partition: int, records: Sequence[Message]) -> Slice | None:
        """What the partition gave, up to the consumer's position, which may lie past the last message."""
        start = self._positions[partition]
        try:
            # Not `position`, which raises what belongs to the next poll when the records of this one are in hand already.
            position = self._consumer._subscription.position(TopicPartition(self.topic, partition))
        except GONE:
            return None
        until = max(start, records[-1].offset + 1 if records else start, position.offset if position else start)
        if until == start or partition in self._gaps:
            return None
        self._positions[partition] = until
        return Slice(partition, start, until, records)

    def _take_gaps(self) -> list[Slice]:
        found = []
        for partition, until in self._gaps.items():
            start, self._positions[partition] = self._positions[partition], until
            reason = f"retention deleted offsets {start} to {until - 1} before they were read"
            found.append(Slice(partition, start, until, (), gap=reason))
        self._gaps.clear()
        return found

    def _confirmed(self) -> list[Slice]:
        """The slices that may be given out, now that their topic is known to be the one that the feed is named after.

        The metadata that the client holds may be 5 s old, and a topic that was made again longer is read on in silence. So
        what was fetched is given out only after a broker was asked, later than the fetch, which topic it has: as long as
        it still has the old one, all that was fetched before was of the old one. Each partition's leader is asked, since
        it learns of the new topic before it serves it. While none answers, what was fetched waits.
        """
        if not self._unconfirmed:  # a rebalance may have taken away what was waiting
            self._wait(False)
        if self._held or not self._unconfirmed:
            return []
        try:
            self._incarnation.confirm({piece.partition for piece in self._unconfirmed}, CONFIRM_TIMEOUT_S)
        except KafkaError as error:
            self._repeats.tell(log.info, "waiting for the broker to say which topic it has", reason(error), topic=self.topic)
            self._wait(True)
            return []
        slices, self._unconfirmed = self._unconfirmed, []
        self._wait(False)
        return slices

    def _wait(self, waits: bool) -> None:
        """Read no more, or on, while what was read waits for a broker's word."""
        if waits != self._waits:
            self._waits = waits
            self._pause(self._held or waits)

    def start(self, partition: int, offset: int | None) -> int:
        tp = TopicPartition(self.topic, partition)
        asked, readable = self._find(partition, offset)
        try:
            self._consumer.seek(tp, readable)
            if not (self._held or self._waits):
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

    def _go_on_after(self, error: OffsetOutOfRangeError | LogTruncationError) -> None:
        """The broker has not got an offset that is read next: a gap where that is accepted. Raises DataLostError."""
        refused = error.divergent_offsets if isinstance(error, LogTruncationError) else error.args[0]
        for partition in {tp.partition for tp in refused} & self._positions.keys():
            position, readable = self._find(partition, self._positions[partition])
            if readable == position:
                raise DataLostError(
                    f"{self.name}/{partition}: what the broker has from offset {position} on is not what follows the archive: "
                    f"{error}"
                ) from error
            with suppress(*GONE):
                self._consumer.seek(TopicPartition(self.topic, partition), readable)
            self._gaps[partition] = readable

    def _find(self, partition: int, offset: int | None) -> tuple[int, int]:
        """The offset that is asked for (None: the first), and where the broker can be read on from.

        Raises DataLostError where the broker has not got what comes next and that is not accepted.
        """
        tp = TopicPartition(self.topic, partition)
        with guarded(self._consumer, self._bootstrap, f"the offsets of {self.topic}/{partition} cannot be read"):
            beginning = self._consumer.beginning_offsets([tp])[tp]
            end = self._consumer.end_offsets([tp])[tp]
        with suppress(KafkaError):  # asked again for every slice; here only so that a topic made again is called that
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

    def _look(self, slices: Sequence[Slice]) -> None:
        """Every stall_s, look whether a partition gave nothing since the last look although the broker had more then.

        Raises BrokerError. Without this a client that no longer reads would look like a topic on which nothing happens.
        """
        self._repeats.tell_due()
        now = time.monotonic()
        pause, self._polled_at = now - self._polled_at, now
        if pause > self._stall_s:  # nobody polled, as in a process that was stopped
            self._behind.clear()
            self._look_at = now + self._stall_s
        if now < self._look_at:
            return
        self._look_at = now + self._stall_s
        if not self._incarnation.exists:
            if self._absent:
                raise BrokerError(self._missing)
            self._absent = True
            return
        self._absent = False
        if not self._assignments.joined:
            log.warning(
                "the group gives out no partitions: is its coordinator up, and can advertised.listeners be reached?",
                topic=self.topic,
                last_error=self._last_error,
            )
        self._stable_ends.look(self._positions, self._told_ends())
        watched = {TopicPartition(self.topic, p): at for p, at in self._positions.items() if p not in self._gaps}
        if self._held or self._unconfirmed or not watched:
            self._behind.clear()
            return
        try:
            ends = self._consumer.end_offsets(list(watched), timeout_ms=LOOK_TIMEOUT_MS)
        except KafkaError:  # a broker that is away is waited for
            self._behind.clear()
            return
        for tp, position in watched.items():
            if self._behind.get(tp.partition) == position:
                raise BrokerError(
                    f"{self.name}/{tp.partition}: nothing came for {self._stall_s:g} s, although offset {position} is next and "
                    f"the broker ends at {ends[tp]}; look for errors in the broker's log, and start again"
                )
        self._behind = {tp.partition: at for tp, at in watched.items() if (ends[tp] or 0) > at}

    def _told_ends(self) -> dict[int, int | None]:
        return {p: self._told_end(TopicPartition(self.topic, p)) for p in self._positions}

    def _told_end(self, tp: TopicPartition) -> int | None:
        """The partition's end as the last fetch told it; None if none did, or the partition is gone."""
        try:
            end: int | None = self._consumer.highwater(tp)
        except GONE:
            return None
        return end

    def hold(self, held: bool) -> None:
        """Pause or resume the partitions that were started; what the client has fetched already is kept for later."""
        self._held = held
        self._behind.clear()
        self._pause(held or self._waits)

    def _pause(self, paused: bool) -> None:
        change = self._consumer.pause if paused else self._consumer.resume
        for partition in self._positions:
            with suppress(*GONE):  # another worker's now: the next poll says so
                change(TopicPartition(self.topic, partition))

    def commit(self, offsets: Mapping[int, int]) -> None:
        found = {TopicPartition(self.topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        self._filed |= found
        # Not waited for: a broker that is away must not stop what is already filed, and the next commit says more.
        try:
            self._consumer.commit_async(found)
        except KafkaError as error:  # what an earlier one met; nothing else tells a worker that its instance was taken
            self._fenced |= isinstance(error, FencedInstanceIdError)
            self._repeats.tell(log.info, "an advisory commit was refused", reason(error), topic=self.topic)

    def close(self) -> None:
        """Leave the group, and tell it once more how far the archive is, as far as the broker will listen."""
        self._repeats.tell_due(all_of_it=True)
        self._stable_ends.tell_unread(self._positions, self._told_ends())
        mine = {tp: offset for tp, offset in self._filed.items() if tp.partition in self._positions}
        try:
            if mine:
                self._consumer.commit(mine, timeout_ms=CLOSE_TIMEOUT_MS)
        except KafkaError as error:
            log.warning("the last advisory commit was refused", error=f"{type(error).__name__}: {error}")
        with suppress(KafkaError):  # a broker that is away forgets this worker by itself
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
