"""Labelled lumisections as rows: whole numbers that a network's input is made of, beside what closed forms look at.

A row holds the residual of each live channel to its followed gain, then the conditions a and b (`learners.response.reference`,
as logarithms), coded as whole numbers of two bytes, so that a memory keeps as many as it keeps maps. The label is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.splits import Part

CONDITIONS = 2
"""Values of a row that are conditions, the last ones."""

CLIP, STEP = 10.0, 1 / 3000
"""Values are cut at ± this, and rounded to this."""

GOOD, FAULTY = 0, 1
"""Labels as outputs of a network (`learners.task.LabelTask`)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled lumisections of a period, n of them.

    values: uint16, (n, live + 2). fault: the fault score, float64, (n,). label: `GOOD` or `FAULTY`, int64. part: `Part`, uint8.
    run, lumisection: numbers, int64.
    """

    values: np.ndarray
    fault: np.ndarray
    label: np.ndarray
    part: np.ndarray
    run: np.ndarray
    lumisection: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: np.ndarray) -> Rows:
        """Some of the rows, by position or by a bool mask."""
        return Rows(*(getattr(self, entry.name)[index] for entry in fields(self)))

    def of(self, part: Part) -> Rows:
        """The rows of a part."""
        return self.take(self.part == part)

    def counts(self, part: Part) -> np.ndarray:
        """Good and faulty lumisections of a part, (2,)."""
        return np.bincount(self.label[self.part == part], minlength=2)

    def state(self) -> dict[str, np.ndarray]:
        """The rows as named arrays."""
        return {entry.name: getattr(self, entry.name).copy() for entry in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Rows:
        """The rows whose `state` this is. Raises StateError if it is damaged."""
        names = [entry.name for entry in fields(cls)]
        if not set(names) <= state.keys() or len({len(state[name]) for name in names}) != 1:
            raise StateError(f"the state's labelled lumisections lack some of {', '.join(names)}; it is damaged")
        return cls(*(np.array(state[name]) for name in names))


def joined(several: Sequence[Rows]) -> Rows:
    """All rows of several, one after another; there must be one."""
    return Rows(*(np.concatenate([getattr(rows, entry.name) for rows in several]) for entry in fields(Rows)))


def coded(residuals: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Values of rows, uint16 (n, live + 2), from residuals (n, live) and conditions a, b (n, 2), which are above 0."""
    values = np.concatenate([residuals, np.log(np.maximum(conditions, np.exp(-CLIP)))], axis=1)
    return np.rint((np.clip(values, -CLIP, CLIP) + CLIP) / STEP).astype(np.uint16)


def decoded(values: np.ndarray) -> np.ndarray:
    """Residuals and logarithms of conditions, float32 (n, live + 2), from values of rows."""
    return np.asarray(values, dtype=np.float32) * np.float32(STEP) - np.float32(CLIP)
