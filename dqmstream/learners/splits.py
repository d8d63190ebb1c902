"""The split of a run into train, validation and test lumisections: a pure function of the lumisection number.

Luminosity changes slowly, so neighbouring lumisections are alike, and a random split lets a model recognise a test lumisection
by its neighbours. The parts are therefore blocks of consecutive lumisections with gaps between them, in cycles of 200:

    train 100 | gap 20 | validation 10 | gap 20 | test 30 | gap 20

In a file of interpolated lumisections (10000 rows made from 501), blocks and gaps are 25 times as long. `assign` is this split.

A run that is too short for these blocks, as half of the real ones are, has one of each, with lengths in proportion to its own
(`assign_short`); of 20 lumisections:

    train 11 | gap 2 | validation 1 | gap 2 | test 4

`kind_of` decides between the two, and a ledger names the one that a run has. `Split` offers others for comparison: a random
one, and folds.
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


BLOCKS, SHORT = "blocks", "short"
"""Kinds of split that a ledger line can name."""

FEWEST_TRAIN, FEWEST_OTHER = 20, 1
"""Lumisections for training, and for each of validation and test, from which the blocks of a cycle are used."""

ALL_IN_TRAIN = 5
"""A run of fewer lumisections cannot have three parts with a gap between them."""


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

KINDS = (BLOCKS, "random", "folds")
"""Kinds of `Split`."""


def assign(lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
    """Part of each lumisection: uint8 `Part` values of the same shape.

    lumisections: numbers, counted from 1. scale: factor on the lengths, 1 or (for interpolated rows) 25.
    """
    return _cycle((np.asarray(lumisections) - 1) % (CYCLE * scale), scale, TRAIN, TEST)


def assign_short(lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
    """Part of each lumisection of a short run: one block of each part, in the order train, validation, test.

    Blocks go by the order of the numbers, not by the numbers, so that missing ones leave no part empty; gaps in numbers are
    then as long or longer. Of n lumisections a tenth is in each gap, a twentieth in validation, a fifth in test (at least 1, at
    most as many as in a cycle), and the rest in train. lumisections: numbers of the whole run, each once. scale: as `assign`.
    """
    numbers = np.asarray(lumisections)
    size = numbers.size // scale
    parts = np.full(numbers.shape, Part.TRAIN, dtype=np.uint8)
    if size < ALL_IN_TRAIN:
        return parts
    gap, validation, test = (
        scale * min(max(1, size // share), most) for share, most in ((10, BETWEEN), (20, VALIDATION), (5, TEST))
    )
    place = np.empty(numbers.size, dtype=np.int64)
    place[np.argsort(numbers, axis=None)] = np.arange(numbers.size)
    end = numbers.size
    for part, length in ((Part.TEST, test), (Part.GAP, gap), (Part.VALIDATION, validation), (Part.GAP, gap)):
        parts[((place >= end - length) & (place < end)).reshape(numbers.shape)] = part
        end -= length
    return parts


def kind_of(lumisections: np.ndarray, scale: int = 1) -> str:
    """The kind of split for a complete run: blocks where they have enough of each part, else short."""
    count = np.bincount(assign(lumisections, scale).ravel(), minlength=len(Part))
    enough = count[Part.TRAIN] >= FEWEST_TRAIN and min(count[Part.VALIDATION], count[Part.TEST]) >= FEWEST_OTHER
    return BLOCKS if enough else SHORT


def assign_by(kind: str, lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
    """Part of each lumisection by a kind of split. Raises InputError for a kind that this version does not know."""
    ways = {BLOCKS: assign, SHORT: assign_short}
    if kind not in ways:
        raise InputError(f"there is no split {kind!r} of a run; this dqmstream knows {', '.join(ways)}: upgrade it")
    return ways[kind](lumisections, scale)


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

    def assign_run(self, lumisections: np.ndarray, scale: int = 1) -> np.ndarray:
        """Part of each lumisection of a whole run: where the kind is blocks, by the split that a ledger gives the run."""
        if self.kind == BLOCKS:
            return assign_by(kind_of(lumisections, scale), lumisections, scale)
        return self.assign(lumisections, scale)


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
