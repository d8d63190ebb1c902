"""Exemplars of two bits a channel: residuals to the reference, rounded to four levels, with the conditions that undo them.

A count of 16 bits is kept far more exactly than it says anything: its scatter is one deviation. Of a normal residual of unit
variance, four levels leave out .12 of the variance (Max, IRE Trans. Inf. Theory 6 (1960) 7, table I), and nearly eight times as
many lumisections fit in the same bytes. What is lost is how far an outlying channel lies beyond 1.5 deviations.

A lumisection becomes uint16 numbers, eight residuals each, and two float32 for its conditions. Counts are given back as
expected under these conditions, plus the residual: they are not whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.response.reference import Reference

LEVELS = np.array([-1.510, -0.4528, 0.4528, 1.510])
"""Residuals that are told apart, in deviations."""

_LARGEST_STEP = 0.25
"""Largest unit of the levels, over the expected count."""

_MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / 2
_BITS = 2
_EACH = 16 // _BITS
_SHIFTS = _BITS * np.arange(_EACH, dtype=np.uint16)
_CONDITIONS = 4
"""uint16 numbers of the two conditions."""


class ResidualCodec:
    """Counts of the live channels, (n, live), to packed rows and back, by a reference."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.width = -(-reference.channels // _EACH) + _CONDITIONS
        """uint16 numbers of a lumisection."""

    def packed(self, counts: np.ndarray) -> np.ndarray:
        """Counts (n, live) to uint16 (n, width)."""
        counts = counts.astype(np.float64)
        conditions = self.reference.conditions_of_live(counts).astype(np.float32)
        expected, step = self._expected(conditions.astype(np.float64))
        levels = np.zeros((len(counts), _EACH * (self.width - _CONDITIONS)), dtype=np.uint16)
        levels[:, : counts.shape[1]] = np.digitize((counts - expected) / step, _MIDDLES)
        together = np.bitwise_or.reduce(levels.reshape(len(counts), -1, _EACH) << _SHIFTS, axis=2)
        return np.concatenate([together, conditions.view(np.uint16)], axis=1)

    def counts(self, packed: np.ndarray) -> np.ndarray:
        """Packed rows to counts, 0 or more: float32 (n, live)."""
        conditions = np.ascontiguousarray(packed[:, -_CONDITIONS:]).view(np.float32).astype(np.float64)
        apart = (packed[:, :-_CONDITIONS, None] >> _SHIFTS) & (2**_BITS - 1)
        levels = apart.reshape(len(packed), apart.shape[1] * _EACH)[:, : self.reference.channels]
        expected, step = self._expected(conditions)
        counts = np.maximum(expected + LEVELS[levels] * step, 0.0).astype(np.float32)
        counts[~conditions.any(axis=1)] = 0.0  # a lumisection without events
        return counts

    def _expected(self, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected counts and the unit of the levels, (n, live) each: a deviation where the reference knows it."""
        expected = self.reference.fitted.expected(conditions)
        # The deviation of a channel that says nothing may be thousands of times its counts, which box totals would hold.
        return expected.counts, np.minimum(expected.deviation, _LARGEST_STEP * expected.counts + 1)


class PackedExemplars:
    """An `ExemplarMemory` whose lumisections are packed; counts go in and come out. All else as there."""

    def __init__(self, reference: Reference, budget_bytes: int, seed: int, policy: str = "balanced", least: int = 1) -> None:
        """reference: by which lumisections are packed; see `use`. All else as in `ExemplarMemory`."""
        self._codec = ResidualCodec(reference)
        self._memory = ExemplarMemory(self._codec.width, budget_bytes, seed, policy, least)

    def use(self, reference: Reference) -> None:
        """Pack what is kept anew where the reference has changed since."""
        if reference is self._codec.reference:
            return
        codec = ResidualCodec(reference)
        for i in range(self.classes):
            rows = self._memory.of(i)
            rows[:] = codec.packed(self._codec.counts(rows))
        self._codec = codec

    @property
    def classes(self) -> int:
        return self._memory.classes

    @property
    def sizes(self) -> list[int]:
        return self._memory.sizes

    @property
    def budget_bytes(self) -> int:
        return self._memory.budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        self._memory.budget_bytes = budget_bytes

    def of(self, experience: int) -> np.ndarray:
        """Counts kept of an experience: float32 (kept, live)."""
        return self._codec.counts(self._memory.of(experience))

    def rounded(self, counts: np.ndarray) -> np.ndarray:
        """Counts (n, live) as they would come back: what is trained on beside exemplars must be rounded as they are."""
        return self._codec.counts(self._codec.packed(counts))

    def add(self, counts: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        features = None if residuals is None else lambda _: residuals(counts)
        self._memory.add(self._codec.packed(counts), features)

    def memory_bytes(self) -> int:
        return self._memory.memory_bytes()

    def state(self) -> dict[str, np.ndarray]:
        return self._memory.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._memory.restore(state)
