"""Which two rows of a full memory are least apart, kept up to date: a run costs the distances of a few rows, not all pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Nearest:
    """Of each row the one that is least apart from it, while rows are added at the end and two become one.

    What it holds follows from the rows: it need not be saved.
    """

    def __init__(self, apart: Callable[[int], np.ndarray], rows: int) -> None:
        """apart: distances of row i from all rows as they are now, float64 (rows,), the same either way; what it says of a
        row and itself does not count."""
        self._apart = apart
        self._of = np.zeros(rows, dtype=np.int64)
        self._distance = np.full(rows, np.inf)
        for row in range(rows):
            self._look(row)

    def _look(self, row: int) -> np.ndarray:
        distance = self._apart(row)
        distance[row] = np.inf
        self._of[row] = nearest = int(distance.argmin())
        self._distance[row] = distance[nearest]
        return distance

    def add(self) -> None:
        """A row came, behind the others."""
        self._of, self._distance = np.append(self._of, 0), np.append(self._distance, np.inf)
        self._come(len(self._of) - 1)

    def _come(self, row: int) -> None:
        """A row is new, or another than it was."""
        distance = self._look(row)
        nearer = (distance < self._distance) | ((distance == self._distance) & (row < self._of))
        nearer[row] = False
        self._of[nearer], self._distance[nearer] = row, distance[nearer]

    @property
    def pair(self) -> tuple[int, int]:
        """The two rows that are least apart, the first of them first; there must be two."""
        first = int(self._distance.argmin())
        second = int(self._of[first])
        return min(first, second), max(first, second)

    def merged(self, first: int, second: int) -> None:
        """Row `first` has become what both were, and `second` is gone; those behind it have moved up."""
        left_behind = np.delete(np.isin(self._of, (first, second)), second)
        self._of, self._distance = np.delete(self._of, second), np.delete(self._distance, second)
        self._of[self._of > second] -= 1
        left_behind[first] = False
        for row in np.flatnonzero(left_behind):
            self._look(int(row))
        self._come(first)


def in_one_row(row_of_class: np.ndarray, first: int, second: int) -> np.ndarray:
    """The row of each class when those of row `second` have come to row `first`, and the rows behind it have moved up."""
    row = np.where(row_of_class == second, first, row_of_class)
    return np.asarray(row - (row > second), dtype=row_of_class.dtype)
