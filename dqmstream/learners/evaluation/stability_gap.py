"""The stability gap: accuracy on earlier runs drops when a training begins, and recovers before it ends.

De Lange et al. (ICLR 2023) found it by evaluating at every training step. Here accuracy is measured on a fixed sample of
lumisections, often at the beginning and more rarely later, so that the cost of a training does not depend on its length or on
the number of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.history_line import Watched
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.memory.map_codec import packed, unpacked
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Strategy

LUMISECTIONS = 20
"""Of each watched run. Its accuracy is a multiple of 1/20, and the lowest of many measurements is low by chance too."""

MOMENTS = 20
"""Measurements during one training that the budget allows, including the one at its end."""

THINNING = 1.2
"""After a measurement at call n, the next is at call 1.2 n or n + 1: 20 measurements reach call 80."""


class Watcher:
    """Measures accuracy on a sample of earlier runs during one training after another.

    budget: lumisections scored during one training and at its end. budget // 400 runs are watched, on at most 20 fixed test
    lumisections each. Each run draws a random number, and the runs with the smallest are watched: every run has the same
    chance, and a run that was dropped does not come back.
    """

    def __init__(self, budget: int) -> None:
        """Raises InputError for a budget that is too small for one run."""
        if budget < LUMISECTIONS * MOMENTS:
            raise InputError(f"watching takes {LUMISECTIONS * MOMENTS} lumisections a training at least, not {budget}")
        self.budget = budget
        self._runs = budget // (LUMISECTIONS * MOMENTS)
        self._sample: dict[int, tuple[float, Maps]] = {}
        self._begin()

    def add(self, number: int, run: RunData, again: Sequence[int] = ()) -> None:
        """Watch a run that has been learnt, if it is drawn. number: of its experience.

        again: earlier experiences of the run. A run that two classes stand for is no longer watched.
        """
        for earlier in again:
            self._sample.pop(earlier, None)
        if again:
            return
        rng = np.random.default_rng([run.run, LUMISECTIONS])
        test = run.part(Part.TEST)
        keep = np.sort(rng.permutation(len(test))[:LUMISECTIONS])
        self._sample[number] = float(rng.random()), test.take(keep)
        if len(self._sample) > self._runs:
            del self._sample[max(self._sample, key=lambda i: self._sample[i][0])]

    def state(self) -> dict[str, np.ndarray]:
        """The watched runs and their lumisections, as named arrays."""
        sample = list(self._sample.items())
        drawn = np.array([draw for _, (draw, _) in sample])
        numbers = np.array([number for number, _ in sample], dtype=np.int64)
        return packed([maps for _, (_, maps) in sample]) | {"numbers": numbers, "drawn": drawn}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        beside = {name: array for name, array in state.items() if name not in ("numbers", "drawn")}
        maps = unpacked(beside)
        if len(beside) == len(state) or not len(state["numbers"]) == len(state["drawn"]) == len(maps):
            raise StateError("the state lacks lumisections that are watched; it is damaged")
        drawn = state["drawn"].tolist()
        self._sample = dict(zip(state["numbers"].tolist(), zip(drawn, maps, strict=True), strict=True))

    def _begin(self) -> None:
        self._calls = self._moments = self._lumisections = 0
        self._next = 1
        self._lowest: dict[int, float] = {}

    def call(self, strategy: Strategy) -> None:
        """To be called during a training whenever `scores` may be called; measures accuracy if it is time."""
        self._calls += 1
        # The cost of the measurement at the end is reserved.
        if self._calls >= self._next and self._lumisections + 2 * self._size <= self.budget:
            self._next = max(self._calls + 1, int(np.ceil(THINNING * self._calls)))
            self._measure(strategy)

    def end(self, strategy: Strategy) -> Watched:
        """Measure once more after the training, return what was found, and be ready for the next training."""
        self._measure(strategy)
        found = Watched(dict(sorted(self._lowest.items())), self._moments, self._calls, self._lumisections)
        self._begin()
        return found

    @property
    def _size(self) -> int:
        return sum(len(maps) for _, maps in self._sample.values())

    def _measure(self, strategy: Strategy) -> None:
        for number, (_, maps) in self._sample.items():
            accuracy = float(np.mean(strategy.scores(maps).argmax(axis=1) == number))
            self._lowest[number] = min(accuracy, self._lowest.get(number, 1.0))
        self._moments += 1
        self._lumisections += self._size
