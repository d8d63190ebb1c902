"""The split of a run into train, validation and test lumisections: a pure function of the lumisection number.

Luminosity changes slowly, so neighbouring lumisections are alike, and a random split lets a model recognise a test lumisection
by its neighbours. The parts are therefore blocks of consecutive lumisections with gaps between them, in cycles of 200:

    train 100 | gap 20 | validation 10 | gap 20 | test 30 | gap 20

In a file of interpolated lumisections (10000 rows made from 501), blocks and gaps are 25 times as long. `assign` is this split;
every ledger uses it. `Split` offers others for comparison: a random one, and folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from dqmstream.errors import InputError

INTERPOLATED_SCALE = 25
"""Factor on the lengths of blocks and gaps for interpolated lumisections."""

TRAIN, VALIDATION, TEST, BETWEEN = 100, 10, 30, 20
"""Lengths of the blocks, and of each of the three gaps, in lumisections."""

CYCLE = TRAIN + VALIDATION + TEST + 3 * BETWEEN
"""Length of a cycle in lumisections."""


class Part(IntEnum):
    """Part of a run that a lumisection belongs to."""

    GAP = 0
    TRAIN = 1
    VALIDATION = 2
    TEST = 3


WARNING_RANDOM = (
    "a random split flatters where rows are interpolated: 8 runs that do not differ at all are told apart with an accuracy of "
    "0.95 by the nearest training row and of 0.53 by the gain map, where chance is 0.125; blocks 25 times as long give 0.13 "
    "and 0.12 (501 lumisections made 10000 rows, seeds 100-104: python -m benchmarks.splits)"
)
"""Warning shown with every random split. Its figures were measured with the command that it names."""

KINDS = ("blocks", "random", "folds")
"""Kinds of `Split`."""


def assign(lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
    """Part of each lumisection: uint8 `Part` values of the same shape.

    lumisections: numbers, counted from 1. scale: factor on the lengths, 1 or (for interpolated rows) 25.
    """
    return _cycle((np.asarray(lumisections) - 1) % (CYCLE * scale), scale, TRAIN, TEST)


@dataclass(frozen=True, slots=True)
class Split:
    """A way to assign lumisections to parts.

    kind:

    * "blocks" is `assign`.
    * "random" draws each lumisection independently, from `seed`, with the shares of blocks: train 50 %, validation 5 %, test
      15 %, the rest unused.
    * "folds" is fold number `fold` of `folds`: the cycle of blocks with test blocks of 200 / folds lumisections, train blocks
      longer or shorter by the difference, and the same gaps, shifted by `fold` test blocks. Over all folds, every lumisection
      is in test exactly once.

    Raises InputError for an unknown kind, a negative seed, a number of folds that does not divide 200 or is not within 2 to 20,
    and a fold that does not exist.
    """

    kind: str = "blocks"
    seed: int = 0
    fold: int = 0
    folds: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"there is no split {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.seed < 0:
            raise InputError(f"the seed of a split is 0 or more, not {self.seed}")
        if not 2 <= self.folds <= 20 or CYCLE % self.folds:
            raise InputError(f"{self.folds} folds do not divide a cycle of {CYCLE} lumisections: choose 2, 4, 5, 8, 10 or 20")
        if not 0 <= self.fold < self.folds:
            raise InputError(f"fold {self.fold} is not one of the {self.folds} folds, which are counted from 0")

    def assign(self, lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
        """Part of each lumisection, as by the function `assign`; a random split ignores the scale."""
        return _WAYS[self.kind](self, np.asarray(lumisections), scale)


def _blocks(split: Split, lumisections: np.ndarray, scale: int) -> np.ndarray:
    return assign(lumisections, scale)


def _random(split: Split, lumisections: np.ndarray, scale: int) -> np.ndarray:
    place = _uniform(split.seed, lumisections) * CYCLE
    parts = np.full(place.shape, Part.GAP, dtype=np.uint8)
    edges = np.cumsum([0, TRAIN, VALIDATION, TEST])
    for part, start, stop in zip((Part.TRAIN, Part.VALIDATION, Part.TEST), edges[:-1], edges[1:], strict=True):
        parts[(place >= start) & (place < stop)] = part
    return parts


def _folds(split: Split, lumisections: np.ndarray, scale: int) -> np.ndarray:
    test = CYCLE // split.folds
    train = CYCLE - VALIDATION - 3 * BETWEEN - test
    return _cycle((lumisections - 1 - split.fold * test * scale) % (CYCLE * scale), scale, train, test)


_WAYS = {"blocks": _blocks, "random": _random, "folds": _folds}


def _cycle(place: np.ndarray, scale: int, train: int, test: int) -> np.ndarray:
    """Parts by position in a cycle: train, validation and test blocks, each followed by a gap."""
    parts = np.full(place.shape, Part.GAP, dtype=np.uint8)
    start = 0
    for part, length in ((Part.TRAIN, train), (Part.VALIDATION, VALIDATION), (Part.TEST, test)):
        parts[(place >= start * scale) & (place < (start + length) * scale)] = part
        start += length + BETWEEN
    return parts


def _uniform(seed: int, numbers: np.ndarray) -> np.ndarray:
    """A pseudo-random number in [0, 1) for each number, which depends on it and the seed alone: float64, as `numbers`.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, fig. 17) at step `number` of its sequence.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    # The seed is mixed first: otherwise neighbouring seeds give the same sequence, shifted by a step.
    z = _mixed(np.array([seed], dtype=np.uint64) * gamma) + numbers.astype(np.uint64) * gamma
    return (_mixed(z) >> np.uint64(11)) * 2.0**-53


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
