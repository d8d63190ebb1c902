"""A few lumisections of every past run, in a budget of bytes that is fixed for the whole stream.

Every class has the same share of the places; when a run comes, all old classes give some up. Raw counts are kept, never
residuals: what is made of them may change, the counts do not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import InputError, StateError


class ExemplarMemory:
    """Counts of the live channels of chosen lumisections, in one array that is filled but never grows.

    Whole counts up to 65535 are kept as uint16; from the first that is not, all are float32, and half as many fit.
    """

    def __init__(self, channels: int, budget_bytes: int, seed: int) -> None:
        """channels: live channels. budget_bytes: of the whole memory, for the whole stream. seed: of the choice."""
        self.budget_bytes = budget_bytes
        self._seed = seed
        self._sizes: list[int] = []
        self._store = self._allocate(channels, np.dtype(np.uint16))

    def _allocate(self, channels: int, dtype: np.dtype) -> np.ndarray:
        places = self.budget_bytes // (channels * dtype.itemsize)
        if places < 1:
            raise InputError(f"a memory of {self.budget_bytes} bytes cannot hold one lumisection of {channels} channels")
        return np.zeros((places, channels), dtype=dtype)

    @property
    def classes(self) -> int:
        return len(self._sizes)

    @property
    def places(self) -> int:
        """Lumisections that fit."""
        return len(self._store)

    def memory_bytes(self) -> int:
        """Bytes held, filled or not."""
        return self._store.nbytes

    def of(self, experience: int) -> np.ndarray:
        """Counts that are kept of an experience: shape (kept, live), a view."""
        start = sum(self._sizes[:experience])
        return self._store[start : start + self._sizes[experience]]

    def add(self, counts: np.ndarray) -> None:
        """Make room for the next experience, and keep a random choice of its lumisections: counts (n, live).

        Old classes keep the first of theirs, which were put in random order when they came; so which ones stay depends on the
        seed and on the experience alone.
        """
        order = np.random.default_rng([self._seed, self.classes]).permutation(len(counts))
        kept = [self.of(i) for i in range(self.classes)] + [counts[order]]
        store = self._store
        if store.dtype != np.float32 and not _whole(counts):
            store = self._allocate(store.shape[1], np.dtype(np.float32))
        share, more = divmod(len(store), len(kept))
        sizes = [min(len(rows), share + (i < more)) for i, rows in enumerate(kept)]
        # Old rows only move towards the start, one class after another: none is overwritten before it has moved.
        start = 0
        for rows, size in zip(kept, sizes, strict=True):
            store[start : start + size] = rows[:size]
            start += size
        store[start:] = 0
        self._store, self._sizes = store, sizes

    def state(self) -> dict[str, np.ndarray]:
        """What is kept, as named arrays."""
        return {"counts": self._store[: sum(self._sizes)].copy(), "sizes": np.array(self._sizes, dtype=np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it does not fit in this memory."""
        if "counts" not in state or "sizes" not in state or state["counts"].dtype not in (np.uint16, np.float32):
            raise StateError("the state's memory is damaged: it lacks its counts or sizes, or they are not numbers of ours")
        counts, sizes = state["counts"], [int(size) for size in state["sizes"]]
        store = self._allocate(self._store.shape[1], counts.dtype)
        if counts.shape != (sum(sizes), store.shape[1]) or len(counts) > len(store):
            raise StateError(f"the state's memory of shape {counts.shape} does not fit one of shape {store.shape}")
        store[: len(counts)] = counts
        self._store, self._sizes = store, sizes


def _whole(counts: np.ndarray) -> bool:
    return bool(counts.size == 0 or (counts.max() <= np.iinfo(np.uint16).max and (counts == np.floor(counts)).all()))
