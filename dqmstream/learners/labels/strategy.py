"""The protocol of a strategy for fixed labels: it learns periods one after another, and scores lumisections good or faulty.

A period is one run or more, in their order, that hold enough good and faulty lumisections for train and test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.labels.rows import Rows, joined
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog

FEWEST = 10
"""Good and faulty lumisections that train and test of a period need, each."""


@dataclass(frozen=True, eq=False)
class Period:
    """An experience of the task. number: 0, 1, 2, ... runs: its runs, in their order. rows: their labelled lumisections."""

    number: int
    runs: tuple[int, ...]
    rows: Rows


class LabelStrategy(Protocol):
    """Learns periods that arrive one at a time.

    `learn` uses rows of the train part alone, and is a function of the state before it, the seed and the period.
    """

    name: str

    @property
    def periods(self) -> int:
        """Number of periods learnt."""
        ...

    def learn(self, period: Period) -> LearnLog:
        """Learn the next period; ValueError if it is not the next."""
        ...

    def scores(self, rows: Rows) -> np.ndarray:
        """Log-probability of good and of faulty, float64, (n, 2). A row does not depend on the rows beside it."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later calls depend on, as named arrays."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it belongs to another strategy or is damaged."""
        ...

    def memory_bytes(self) -> int:
        """Bytes kept of past lumisections; the budget limits them."""
        ...

    def state_bytes(self) -> int:
        """Bytes of all else that is kept beside the model; shown, not limited."""
        ...


class OpenPeriod:
    """Runs that wait until they hold both labels: a period ends with the first run at which they do.

    runs: those that wait. ended: number of periods that have ended.
    """

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.ended = 0
        self._rows: list[Rows] = []

    def add(self, run: int, rows: Rows) -> Period | None:
        """Add a run; returns the period where it is complete."""
        self.runs.append(run)
        self._rows.append(rows)
        every = joined(self._rows)
        if min(int(every.counts(part).min()) for part in (Part.TRAIN, Part.TEST)) < FEWEST:
            return None
        period = Period(self.ended, tuple(self.runs), every)
        self.runs, self._rows = [], []
        self.ended += 1
        return period

    def state(self) -> dict[str, np.ndarray]:
        """What waits, as named arrays."""
        state = {"ended": np.array(self.ended), "waiting": np.array(self.runs, dtype=np.int64)}
        return state | prefixed("rows", joined(self._rows).state()) if self.runs else state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        if not {"ended", "waiting"} <= state.keys():
            raise StateError("the state does not say which runs wait for the end of their period; it is damaged")
        self.runs, self.ended = [int(run) for run in state["waiting"]], int(state["ended"])
        self._rows = [Rows.from_state(within(state, "rows"))] if self.runs else []
