"""Looks at earlier runs in the course of a training: a fall that is made good before its end is seen only here.

De Lange et al. (ICLR 2023) found that accuracy on what was known falls right after a training begins and then recovers, the
stability gap, and evaluate at every step. Here a fixed sample is looked at, often in the beginning and more rarely later,
within a number of lumisections that is fixed for a training however long it is and however many runs there are.
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
"""Of each watched run: its accuracy is a multiple of 1/20, and its lowest of many is low by chance too."""

MOMENTS = 20
"""Looks at a training that the budget allows for, the one at the end among them."""

THINNING = 1.2
"""After its call n, the next look is at call 1.2 n or the next one: 20 looks reach call 80."""


class Watcher:
    """Watches one training after another.

    budget: lumisections scored in the course of one training, at its end included. budget // 400 runs are watched, at most
    20 of the test lumisections of each, always the same. Which runs: those of the smallest number drawn by the run, so that
    every run seen has the same chance, and one that is dropped never comes back.
    """

    def __init__(self, budget: int) -> None:
        """Raises InputError for a budget that does not suffice for one run."""
        if budget < LUMISECTIONS * MOMENTS:
            raise InputError(f"watching takes {LUMISECTIONS * MOMENTS} lumisections a training at least, not {budget}")
        self.budget = budget
        self._runs = budget // (LUMISECTIONS * MOMENTS)
        self._sample: dict[int, tuple[float, Maps]] = {}
        self._begin()

    def add(self, number: int, run: RunData, again: Sequence[int] = ()) -> None:
        """Let a run that has been learnt be watched, if it is drawn.

        again: experiences by which it was learnt before: a run that two classes name is watched no more.
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
        """The runs that are watched and their lumisections, as named arrays."""
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
        """A moment in the course of a training at which `scores` may be asked."""
        self._calls += 1
        # What the look at the end will cost is kept back.
        if self._calls >= self._next and self._lumisections + 2 * self._size <= self.budget:
            self._next = max(self._calls + 1, int(np.ceil(THINNING * self._calls)))
            self._look(strategy)

    def end(self, strategy: Strategy) -> Watched:
        """Look once more, after the training, say what was seen, and be ready for the next."""
        self._look(strategy)
        seen = Watched(dict(sorted(self._lowest.items())), self._moments, self._calls, self._lumisections)
        self._begin()
        return seen

    @property
    def _size(self) -> int:
        return sum(len(maps) for _, maps in self._sample.values())

    def _look(self, strategy: Strategy) -> None:
        for number, (_, maps) in self._sample.items():
            accuracy = float(np.mean(strategy.scores(maps).argmax(axis=1) == number))
            self._lowest[number] = min(accuracy, self._lowest.get(number, 1.0))
        self._moments += 1
        self._lumisections += self._size
