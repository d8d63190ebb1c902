"""Base of the closed forms that keep one row of numbers a run: they learn a run in one pass and forget nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry


class RowPerRun(Incremental):
    """A strategy whose memory is a few arrays with one row a run, without a budget of bytes."""

    arrays: ClassVar[tuple[str, ...]]
    """Names of the arrays."""
    channel_flops: ClassVar[int]
    """Floating-point operations of `_summarise` for a lumisection and channel, without those of the response."""

    def __init__(self, geometry: Geometry, seed: int) -> None:
        super().__init__(geometry, seed)
        self._rows: dict[str, np.ndarray] = {}

    @property
    def classes(self) -> int:
        return len(self._rows[self.arrays[0]]) if self._rows else 0

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        for name, row in zip(self.arrays, self._summarise(train), strict=True):
            known = self._rows.get(name)
            self._rows[name] = row[None] if known is None else np.concatenate([known, row[None]])
        flops = self.reference.response_flops(len(train)) + self.channel_flops * len(train) * self.reference.channels
        return LearnLog(samples=len(train), flops=flops)

    @abstractmethod
    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        """The row of a run for each of `arrays`."""

    def state(self) -> dict[str, np.ndarray]:
        return {STAMP: stamp(self._belongs_to)} | self._rows | self._reference_state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        missing = [name for name in self.arrays if known and name not in state]
        if missing:
            raise StateError(f"the state of {self.name} lacks {', '.join(missing)}; it is damaged")
        self._rows = {name: np.array(state[name]) for name in self.arrays} if known else {}
        self._restore_reference(state, known)

    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in self._rows.values())

    def state_bytes(self) -> int:
        return self._reference_bytes()
