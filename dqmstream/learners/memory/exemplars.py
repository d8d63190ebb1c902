"""A few lumisections of past runs, within a budget of bytes that is fixed for the whole stream, or is lowered.

A policy decides which ones (`memory.selection`); this module holds them. They are raw counts, never residuals, since the
reference may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.memory.selection import POLICIES, Offer


class ExemplarMemory:
    """Counts of the live channels of chosen lumisections, in one array of fixed size, run after run.

    Whole counts up to 65535 are stored as uint16. From the first count that is not, all are float32, and half as many fit.

    budget_bytes: may be lowered; lumisections that no longer fit are dropped at the next `add`.
    """

    def __init__(self, channels: int, budget_bytes: int, seed: int, policy: str = "balanced", least: int = 1) -> None:
        """channels: number of live channels. budget_bytes: of the whole memory. seed: of random choices.

        policy: a name of `memory.selection.POLICIES`. least: number of lumisections that must fit; InputError otherwise.
        """
        self.budget_bytes = budget_bytes
        self.policy = policy
        self._seed = seed
        self._seen = 0
        self._set_sizes([])
        self._store = self._allocate(channels, np.dtype(np.uint16))
        if self.places < least:
            raise InputError(
                f"a memory of {budget_bytes} bytes cannot hold one lumisection of {channels} channels; raise --memory-bytes"
            )

    def _set_sizes(self, sizes: list[int]) -> None:
        """Set the number of stored lumisections of each class, in the order of the classes."""
        self._sizes, self._starts = sizes, [0, *accumulate(sizes)]

    def _allocate(self, channels: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros((self._fitting(channels, dtype), channels), dtype=dtype)

    def _fitting(self, channels: int, dtype: np.dtype) -> int:
        return self.budget_bytes // (channels * dtype.itemsize)

    @property
    def classes(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> list[int]:
        """Number of stored lumisections of each class."""
        return list(self._sizes)

    @property
    def places(self) -> int:
        """Number of lumisections that fit."""
        return len(self._store)

    def memory_bytes(self) -> int:
        """Bytes allocated, filled or not."""
        return self._store.nbytes

    def of(self, experience: int) -> np.ndarray:
        """Stored counts of an experience: (kept, live), a view."""
        return self._store[self._starts[experience] : self._starts[experience + 1]]

    def add(self, counts: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Add some lumisections of the next experience, with counts (n, live), and drop older ones to make room.

        residuals: converts counts to residuals, (n, live), for policies that need them; InputError if it is then missing. The
        choice depends on the seed and the counts of all experiences so far alone.
        """
        store = self._store
        dtype = store.dtype if store.dtype == np.float32 or _whole(counts) else np.dtype(np.float32)
        if dtype != store.dtype or self._fitting(store.shape[1], dtype) != len(store):
            store = self._allocate(store.shape[1], dtype)

        def features() -> np.ndarray:
            if residuals is None:
                raise InputError(f"the memory policy {self.policy} needs residuals, and got none")
            return residuals(counts)

        offer = Offer(self._sizes, len(counts), len(store), self._seen, features)
        choice = POLICIES[self.policy](offer, np.random.default_rng([self._seed, self.classes]))
        kept = [*((self.of(i), stay) for i, stay in enumerate(choice.stay)), (counts, choice.come)]
        # Old rows only move towards the start, in order, so none is overwritten before it has moved.
        start = 0
        for rows, chosen in kept:
            store[start : start + len(chosen)] = rows[chosen]
            start += len(chosen)
        store[start:] = 0
        self._store, self._seen = store, self._seen + len(counts)
        self._set_sizes([len(chosen) for _, chosen in kept])

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {
            "counts": self._store[: self._starts[-1]].copy(),
            "sizes": np.array(self._sizes, dtype=np.int64),
            "seen": np.array(self._seen),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged or does not fit."""
        if not {"counts", "sizes", "seen"} <= state.keys() or state["counts"].dtype not in (np.uint16, np.float32):
            raise StateError("the state's memory is damaged: it lacks counts, sizes or seen, or its counts have another type")
        counts, sizes = state["counts"], [int(size) for size in state["sizes"]]
        store = self._allocate(self._store.shape[1], counts.dtype)
        if counts.shape != (sum(sizes), store.shape[1]) or len(counts) > len(store):
            raise StateError(f"the state's memory of shape {counts.shape} does not fit one of shape {store.shape}")
        store[: len(counts)] = counts
        self._store, self._seen = store, int(state["seen"])
        self._set_sizes(sizes)


def _whole(counts: np.ndarray) -> bool:
    return bool(counts.size == 0 or (counts.max() <= np.iinfo(np.uint16).max and (counts == np.floor(counts)).all()))
