"""What was read of a partition and is not in the archive yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from dqmstream.storage.entries import Control, Entry, Row
from dqmstream.storage.layout import ControlKind
from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.message import Message


@dataclass
class PendingBatch:
    """The offsets [start, until) of a partition: each lies in exactly one entry.

    sizes: bytes of the message behind each entry. dead_letters: by offset. sourced: by offset, the messages of rows that
    name a source; such a row may still become a dead letter. since: when the oldest entry came. rows: rows among the
    entries.
    """

    start: int
    until: int
    entries: list[Entry] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    dead_letters: dict[int, DeadLetter] = field(default_factory=dict)
    sourced: dict[int, Message] = field(default_factory=dict)
    since: float = 0.0
    rows: int = 0

    def add(self, entry: Entry, until: int, message: Message | None = None) -> None:
        """Append an entry that ends at `until`. message: what it was made of."""
        self.entries.append(entry)
        self.sizes.append(0 if message is None else message.size)
        self.until = until
        if isinstance(entry, Row):
            self.rows += 1
            if entry.source and message is not None:
                self.sourced[message.offset] = message

    def add_hole(self, until: int) -> None:
        """Account for the offsets before `until` that hold no message: transaction markers, or what compaction removed."""
        if until > self.until:
            self.add(Control(self.until, until, ControlKind.HOLE, reason="the feed has no message here"), until)

    def sourced_rows(self) -> list[Row]:
        """Rows that name a source."""
        return [entry for entry in self.entries if isinstance(entry, Row) and entry.source] if self.sourced else []

    def remove_first(self, count: int) -> None:
        """Forget the first entries, which are in the archive now."""
        filed = self.entries[:count]
        until = end_of(filed[-1])
        del self.entries[:count], self.sizes[:count]
        self.dead_letters = {offset: letter for offset, letter in self.dead_letters.items() if offset >= until}
        self.sourced = {offset: message for offset, message in self.sourced.items() if offset >= until}
        self.rows -= sum(isinstance(entry, Row) for entry in filed)
        self.start = until


def names_source(entry: Entry) -> bool:
    return isinstance(entry, Row) and bool(entry.source)


def end_of(entry: Entry) -> int:
    """The first offset behind the entry."""
    return entry.offset + 1 if isinstance(entry, Row) else entry.until
