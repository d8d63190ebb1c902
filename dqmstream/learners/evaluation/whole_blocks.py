"""Whole test blocks of some runs: for figures of neighbours, where the budget is too small to keep every lumisection."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.map_codec import packed, unpacked
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import TEST

SHARE = 8
"""Test lumisections of an evaluation's budget for one in a whole block."""


class WholeBlocks:
    """One test block and one validation block of each of a few runs, chosen at random.

    budget: test lumisections of an evaluation. At most an eighth of it is kept in blocks of up to 30, and up to 30 validation
    lumisections beside each; nothing where that would be fewer than two runs. Each run draws a random number, and the runs with
    the smallest are kept: every run has the same chance, and one that was dropped does not come back.
    """

    def __init__(self, budget: int) -> None:
        most = budget // SHARE // TEST
        self._most = most if most > 1 else 0
        self._kept: dict[int, tuple[float, Maps, Maps]] = {}

    def add(self, number: int, run: int, test: Maps, validation: Maps) -> None:
        """Take the parts of experience `number`, if it is drawn. Does nothing for a run without test lumisections."""
        if self._most and len(test):
            rng = np.random.default_rng([run, TEST, SHARE])
            self._kept[number] = float(rng.random()), _block(test, rng), _block(validation, rng)
        if len(self._kept) > self._most:
            del self._kept[max(self._kept, key=lambda i: self._kept[i][0])]

    def remove(self, number: int) -> None:
        """Forget an experience whose run was learnt again."""
        self._kept.pop(number, None)

    @property
    def numbers(self) -> list[int]:
        """The experiences, ascending."""
        return sorted(self._kept)

    @property
    def tests(self) -> list[Maps]:
        """The test block of each."""
        return [self._kept[number][1] for number in self.numbers]

    @property
    def validations(self) -> list[Maps]:
        """The validation block of each."""
        return [self._kept[number][2] for number in self.numbers]

    def state(self) -> dict[str, np.ndarray]:
        """Experiences, their random numbers and blocks, as named arrays."""
        drawn = np.array([self._kept[number][0] for number in self.numbers])
        kept = prefixed("test", packed(self.tests)) | prefixed("validation", packed(self.validations))
        return kept | {"numbers": np.array(self.numbers, dtype=np.int64), "drawn": drawn}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        tests, validations = unpacked(within(state, "test")), unpacked(within(state, "validation"))
        numbers, drawn = (state.get(name, np.zeros(0)).tolist() for name in ("numbers", "drawn"))
        if not len(numbers) == len(drawn) == len(tests) == len(validations):
            raise StateError("the state lacks blocks of lumisections that are kept for judging; it is damaged")
        self._kept = dict(zip(numbers, zip(drawn, tests, validations, strict=True), strict=True))


def _block(maps: Maps, rng: np.random.Generator) -> Maps:
    """Up to 30 lumisections of one block, drawn at random; blocks are 30 numbers or more apart."""
    blocks = np.split(np.arange(len(maps)), np.flatnonzero(np.diff(maps.lumisection) >= TEST) + 1)
    return maps.take(blocks[rng.integers(len(blocks))][:TEST])
