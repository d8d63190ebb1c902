"""What ingest reads from: partitions of messages, each at an offset, that start where the archive says.

Kafka is one feed (`streaming.kafka`); `InProcessFeed` is another, for demonstrations, benchmarks and kill tests without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from dqmstream.errors import DataLostError

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it lies in a partition.

    timestamp_ms: when the broker took it, UTC since 1970, 0 if unknown. error: why the client could not read it; value is
    None then.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = 0
    error: str = ""

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return 0 if self.value is None else len(self.value)


@dataclass(frozen=True, slots=True)
class Slice:
    """Offsets [start, until) of a partition and the messages in them; offsets without a message were never one.

    gap: why the offsets cannot be read any more, where the operator said to go on without them; no messages then.
    """

    partition: int
    start: int
    until: int
    messages: Sequence[Message]
    gap: str = ""

    @property
    def size(self) -> int:
        """Bytes of the messages' values."""
        return sum(message.size for message in self.messages)


@dataclass(frozen=True, slots=True)
class Polled:
    """What came since the last poll. A revoked partition's unfiled messages are another worker's now."""

    revoked: Sequence[int] = ()
    assigned: Sequence[int] = ()
    slices: Sequence[Slice] = ()


class Revoked(Exception):
    """The partition was given to another worker before it was started here."""


class Feed(Protocol):
    """A source of partitions. `name` tells the topic's incarnation and never changes: one that was made again is another
    feed, and a feed gives out nothing that is not of its own incarnation, but raises DataLostError."""

    @property
    def name(self) -> str: ...

    @property
    def exhausted(self) -> bool:
        """Whether all that this worker's partitions are known to hold was given; False before it is told which they are."""
        ...

    def poll(self, timeout_s: float) -> Polled:
        """Wait up to timeout_s. An assigned partition gives nothing before `start` is called for it."""
        ...

    def start(self, partition: int, offset: int | None) -> int:
        """Read the partition on from offset (None: from its first message); returns the offset it starts at.

        Raises DataLostError where the feed does not have that offset, Revoked where the partition is gone again.
        """
        ...

    def hold(self, held: bool) -> None:
        """Give nothing more until let go, and stay a member of the group by polling on."""
        ...

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Tell the feed how far the archive is. Advice for monitors: where to read on, the archive alone says."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be stored, and why. It is kept under the key feed/partition/offset."""

    feed: str
    topic: str
    message: Message
    reason: str

    @property
    def key(self) -> str:
        return f"{self.feed}/{self.message.partition}/{self.message.offset}"


class DeadLetters(Protocol):
    """Where messages go that cannot be stored."""

    def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters; on return they are safe. The same letter may come again after a crash, under the same key."""
        ...

    def close(self) -> None: ...


@dataclass
class InProcessFeed:
    """A feed of one partition in this process. messages: makes the iterator of its messages, from the first, each time."""

    name: str
    messages: Callable[[], Iterator[Message]]
    max_records: int = 256
    committed: int = 0
    exhausted: bool = False
    _iterator: Iterator[Message] = field(default_factory=lambda: iter(()))
    _position: int = -1
    _announced: bool = False
    _held: bool = False

    def poll(self, timeout_s: float) -> Polled:
        if not self._announced:
            self._announced = True
            return Polled(assigned=[0])
        if self._held:
            return Polled()
        found = list(islice(self._iterator, self.max_records))
        self.exhausted = len(found) < self.max_records
        if not found:
            return Polled()
        start, self._position = self._position, found[-1].offset + 1
        return Polled(slices=[Slice(0, start, self._position, found)])

    def start(self, partition: int, offset: int | None) -> int:
        self._position = offset or 0
        self._iterator = self.messages()
        passed = len(list(islice(self._iterator, self._position)))
        if passed < self._position:
            raise DataLostError(f"{self.name} ends at offset {passed}, the archive continues at {self._position}")
        return self._position

    def hold(self, held: bool) -> None:
        self._held = held

    def commit(self, offsets: Mapping[int, int]) -> None:
        self.committed = offsets[0]

    def close(self) -> None:
        self._iterator = iter(())
