"""Exemplars of four bits a channel: residuals to the reference, rounded to levels, with the conditions that undo them.

A count of 16 bits is kept far more exactly than it says anything: its scatter is one deviation. Rounded to levels .84
deviations apart, its variance grows by 6 %, and four times as many lumisections fit. Levels reach ±10 deviations, where
residuals end (`response.reference.CLIP`); they are coarser from ±4.2 on.

A lumisection becomes uint16 numbers, four residuals each, and two float32 for its conditions. Counts are given back as expected
under these conditions, plus the residual: they are not whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.response.reference import CLIP, Reference

_INNER = 0.84 * np.arange(-5, 6)
LEVELS = np.concatenate([[-CLIP, -7.5, -5.6], _INNER, [5.6, CLIP]])
"""Residuals that are told apart, in deviations: 16, one more below than above, since channels that fail count less."""

_MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / 2
_NIBBLES = 4
_CONDITIONS = 4
"""uint16 numbers of the two conditions."""


class ResidualCodec:
    """Counts of the live channels, (n, live), to packed rows and back, by a reference."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.width = -(-reference.channels // _NIBBLES) + _CONDITIONS
        """uint16 numbers of a lumisection."""

    def packed(self, counts: np.ndarray) -> np.ndarray:
        """Counts (n, live) to uint16 (n, width)."""
        counts = counts.astype(np.float64)
        conditions = self.reference.conditions_of_live(counts).astype(np.float32)
        expected = self.reference.fitted.expected(conditions.astype(np.float64))
        levels = np.zeros((len(counts), _NIBBLES * (self.width - _CONDITIONS)), dtype=np.uint16)
        scattered = expected.deviation > 0  # not where nothing is expected, as in a lumisection without events
        residuals = np.divide(counts - expected.counts, expected.deviation, out=np.zeros_like(counts), where=scattered)
        levels[:, : counts.shape[1]] = np.digitize(residuals, _MIDDLES)
        four = levels.reshape(len(counts), -1, _NIBBLES) << (_NIBBLES * np.arange(_NIBBLES, dtype=np.uint16))
        return np.concatenate([np.bitwise_or.reduce(four, axis=2), conditions.view(np.uint16)], axis=1)

    def counts(self, packed: np.ndarray) -> np.ndarray:
        """Packed rows to counts, 0 or more: float32 (n, live)."""
        conditions = np.ascontiguousarray(packed[:, -_CONDITIONS:]).view(np.float32).astype(np.float64)
        four = packed[:, :-_CONDITIONS, None] >> (_NIBBLES * np.arange(_NIBBLES, dtype=np.uint16))
        levels = (four & 0xF).reshape(len(packed), four.shape[1] * _NIBBLES)[:, : self.reference.channels]
        expected = self.reference.fitted.expected(conditions)
        return np.maximum(expected.counts + LEVELS[levels] * expected.deviation, 0.0).astype(np.float32)


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

    def add(self, counts: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        features = None if residuals is None else lambda _: residuals(counts)
        self._memory.add(self._codec.packed(counts), features)

    def memory_bytes(self) -> int:
        return self._memory.memory_bytes()

    def state(self) -> dict[str, np.ndarray]:
        return self._memory.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._memory.restore(state)
