"""Messages of a partition, and what one poll of a feed returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Message:
    """A message at its offset in a partition.

    timestamp_ms: when the broker took it, UTC milliseconds since 1970, 0 if unknown. error: why the client could not read
    the message; its value is None then.
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
    """The offsets [start, until) of a partition and the messages at them.

    An offset without a message never had one: it holds a transaction marker, or compaction removed it. gap: why these
    offsets can no longer be read, where the operator accepts that (`--accept-gap`); there are no messages then.
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
    """What happened since the last poll. Unfiled messages of a revoked partition belong to another worker now."""

    revoked: Sequence[int] = ()
    assigned: Sequence[int] = ()
    slices: Sequence[Slice] = ()
