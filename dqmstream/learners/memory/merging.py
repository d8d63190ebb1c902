"""The two most similar rows of a full memory, kept up to date as rows are added and merged.

A new run then costs the distances of a few rows, not of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class NearestRows:
    """The nearest other row of each row. It follows from the rows, so it is not saved."""

    def __init__(self, distances: Callable[[int], np.ndarray], rows: int) -> None:
        """distances: symmetric distances of row i from all present rows, float64, (rows,); that from itself is ignored.

        rows: number of rows at the start.
        """
        self._distances = distances
        self._of = np.zeros(rows, dtype=np.int64)
        self._distance = np.full(rows, np.inf)
        for row in range(rows):
            self._find(row)

    def _find(self, row: int) -> np.ndarray:
        distance = self._distances(row)
        distance[row] = np.inf
        self._of[row] = nearest = int(distance.argmin())
        self._distance[row] = distance[nearest]
        return distance

    def add(self) -> None:
        """A row was added at the end."""
        self._of, self._distance = np.append(self._of, 0), np.append(self._distance, np.inf)
        self._update(len(self._of) - 1)

    def _update(self, row: int) -> None:
        """A row is new or has changed."""
        distance = self._find(row)
        nearer = (distance < self._distance) | ((distance == self._distance) & (row < self._of))
        nearer[row] = False
        self._of[nearer], self._distance[nearer] = row, distance[nearer]

    @property
    def pair(self) -> tuple[int, int]:
        """The two nearest rows, in ascending order; there must be two."""
        first = int(self._distance.argmin())
        second = int(self._of[first])
        return min(first, second), max(first, second)

    def merged(self, first: int, second: int) -> None:
        """Rows `first` and `second` were merged into `first`; rows after `second` have moved up by one."""
        left_behind = np.delete(np.isin(self._of, (first, second)), second)
        self._of, self._distance = np.delete(self._of, second), np.delete(self._distance, second)
        self._of[self._of > second] -= 1
        left_behind[first] = False
        for row in np.flatnonzero(left_behind):
            self._find(int(row))
        self._update(first)


def merged_rows(row_of_class: np.ndarray, first: int, second: int) -> np.ndarray:
    """Row of each class, (classes,), after row `second` was merged into `first` and rows after `second` moved up by one."""
    row = np.where(row_of_class == second, first, row_of_class)
    return np.asarray(row - (row > second), dtype=row_of_class.dtype)
