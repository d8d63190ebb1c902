"""Stacked: several closed forms in one log-linear pool, weighted by lumisections that none of them was fitted to.

The parts are those of `closed_form.pool`. No law need hold: where one part is wrong, held-out lumisections give the weight to
others (`closed_form.pool_weights`). After each run all weights are chosen anew, from the run's validation blocks and a uniform
sample of all past ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.learners.closed_form.pool import SHARE_HELD_OUT, HeldOut, Pool, usual_weights
from dqmstream.learners.closed_form.pool_weights import PoolWeights
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry


@register_strategy("stacked")
class Stacked(Incremental):
    """Learns a run in one pass of each part; without PyTorch."""

    name = "stacked"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of all that is kept, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes)
        self._of, self._memory_bytes = (geometry, seed), memory_bytes
        self._clear()

    def _clear(self) -> None:
        self.pool = Pool(*self._of, self._memory_bytes)
        self._held = HeldOut(self._of[1])
        self.chosen = usual_weights(tuple(self.pool.parts))

    @property
    def classes(self) -> int:
        return self.pool.statistical.classes

    @property
    def weights(self) -> np.ndarray:
        """Weights of the parts that are kept: (parts,)."""
        return self.chosen.weights

    def _share_out(self) -> None:
        left = max(self._memory_bytes - self.pool.memory_bytes(), 0)
        self._held.budget_bytes = min(int(SHARE_HELD_OUT * self._memory_bytes), left)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        log = self.pool.learn(self.reference, experience, train, validation, past)
        held, names = validation.counts[:, self.reference.live], tuple(self.pool.parts)
        self.chosen = self._held.choose(names, held, self.pool.log_probabilities, self.chosen.of(names))
        self._share_out()
        self._held.add(held)
        log.notes |= self.chosen.notes()
        return log

    def _scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, self.reference.live]
        return np.asarray(np.tensordot(self.weights, self.pool.log_probabilities(counts), 1))

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)}
        if self.classes:
            state |= self._reference_state() | prefixed("parts", self.pool.state())
            state |= prefixed("held", self._held.state()) | prefixed("chosen", self.chosen.state())
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        self._clear()
        self._restore_reference(state, known)
        if known:
            self.pool.restore(within(state, "parts"))
            self._share_out()
            self._held.restore(within(state, "held"), int(self.reference.live.sum()))
            self.chosen = PoolWeights.from_state(within(state, "chosen"))

    def memory_bytes(self) -> int:
        return self.pool.memory_bytes() + self._held.memory_bytes()

    def state_bytes(self) -> int:
        return self._reference_bytes() + self.pool.state_bytes()
