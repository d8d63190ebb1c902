"""One mean a class, within a budget of bytes for the whole stream; where it is full, the two nearest means become one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.memory.merging import NearestRows, merged_rows

_ARRAYS = ("rows", "weight", "row_of_class")


class ClassMeans:
    """Rows of numbers, one a class until the budget is full; then classes share rows, and have equal scores.

    rows: (rows, features). weight: number of classes that share each row, float32, (rows,). row_of_class: row of each class,
    int32, (classes,).
    """

    def __init__(self, budget_bytes: int, dtype: type[np.floating]) -> None:
        """dtype: of the rows."""
        self.budget_bytes = budget_bytes
        self._dtype = dtype
        self.rows = np.zeros((0, 0), dtype=dtype)
        self.weight = np.zeros(0, dtype=np.float32)
        self.row_of_class = np.zeros(0, dtype=np.int32)
        self._nearest: NearestRows | None = None

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.row_of_class)

    @property
    def notes(self) -> dict[str, float | list[float]]:
        """Figures for the history: number of rows, and of classes without a row of their own."""
        return {"rows": float(len(self.rows)), "classes_merged": float(len(self) - len(self.rows))}

    def add(self, mean: np.ndarray) -> None:
        """Add the mean of the next class, (features,). Raises InputError if the budget does not hold a single row."""
        row = mean.astype(self._dtype)[None]
        self.row_of_class = np.append(self.row_of_class, np.int32(len(self.rows)))
        self.rows = np.concatenate([self.rows, row]) if len(self.rows) else row
        self.weight = np.append(self.weight, np.float32(1))
        if self._nearest is not None:
            self._nearest.add()
        while self.memory_bytes() > self.budget_bytes:
            self._merge()

    def _merge(self) -> None:
        if len(self.rows) == 1:
            numbers = self.rows.shape[1]
            raise InputError(
                f"{self.budget_bytes} bytes cannot hold the mean of one run, {numbers} numbers; raise --memory-bytes"
            )
        if self._nearest is None:
            self._nearest = NearestRows(self._distances, len(self.rows))
        first, second = self._nearest.pair
        pair = [first, second]
        self.rows[first] = np.average(self.rows[pair].astype(np.float64), axis=0, weights=self.weight[pair])
        self.weight[first] = self.weight[pair].sum()
        self.rows, self.weight = np.delete(self.rows, second, axis=0), np.delete(self.weight, second)
        self.row_of_class = merged_rows(self.row_of_class, first, second)
        self._nearest.merged(first, second)

    def _distances(self, row: int) -> np.ndarray:
        """Squared distance of a row from each row, (rows,)."""
        rows = self.rows.astype(np.float64)
        return np.asarray(((rows - rows[row]) ** 2).sum(axis=1))

    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.rows.nbytes + self.weight.nbytes + self.row_of_class.nbytes

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: getattr(self, name).copy() for name in _ARRAYS}

    def restore(self, state: Mapping[str, np.ndarray], features: int) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged or has another number of features."""
        missing = [name for name in _ARRAYS if name not in state]
        if missing:
            raise StateError(f"the state's class means lack {', '.join(missing)}; it is damaged")
        if state["rows"].dtype != self._dtype or state["rows"].shape[1:] != (features,):
            raise StateError(f"the state's class means of shape {state['rows'].shape} are not of {features} features")
        self.rows, self.weight, self.row_of_class = (np.array(state[name]) for name in _ARRAYS)
        self._nearest = None
