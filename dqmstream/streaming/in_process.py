"""A feed of one partition without a broker, for demonstrations, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from dqmstream.errors import DataLostError
from dqmstream.streaming.message import Message, Polled, Slice


@dataclass
class InProcessFeed:
    """A `Feed` over an iterator in this process.

    messages: returns a new iterator over all messages, from offset 0. max_records: messages that one poll returns at most.
    committed: the offset that was committed last.
    """

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
