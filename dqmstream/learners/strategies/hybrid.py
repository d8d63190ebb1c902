"""The statistical memory's verdict, and a network that is trained to correct it where exemplars show that it can.

    log p(k | x) = log softmax (s_k(x) + α f_k(x))

s: scores of the statistical memory (`learners.statistical`), which is the closed form and forgets nothing. f: the network's
logits, trained by replay with s added to them, so that it learns what s does not say. α: 0, 1/4, ... 1, chosen after each run
on lumisections that nothing was fitted to: those of the run's validation blocks, and a few that are kept of past runs'. α is 0,
and the whole is the closed form, unless the likelihood of these rises by more than one standard error. A correction that is
fitted to what a fixed scorer leaves over is one stage of boosting: Friedman, Ann. Stat. 29 (2001) 1189.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.memory import ExemplarMemory
from dqmstream.learners.stamp import prefixed, within
from dqmstream.learners.statistical import Statistical
from dqmstream.learners.strategies.deep import DeepStrategy
from dqmstream.learners.strategies.method import Method
from dqmstream.learners.strategy import LearnLog, Maps, Past, Watch
from dqmstream.lumisection import Geometry

SHARE_STATISTICS, SHARE_HELD_OUT = 0.25, 0.125
"""Of the budget; exemplars to train on have the rest. At 1 MB: 120 runs of statistics, 64 lumisections held out, 330 kept."""

BLENDS = np.linspace(0.0, 1.0, 5)


class Hybrid(DeepStrategy):
    """A gradient strategy around which the statistical memory stands."""

    def __init__(
        self,
        name: str,
        method: type[Method],
        *,
        geometry: Geometry,
        seed: int,
        memory_bytes: int,
        **network: Any,
    ) -> None:
        """memory_bytes: of statistics and exemplars together. network: recipe and device; all else as in `DeepStrategy`."""
        statistics, self._held_bytes = int(SHARE_STATISTICS * memory_bytes), int(SHARE_HELD_OUT * memory_bytes)
        exemplars = memory_bytes - statistics - self._held_bytes
        super().__init__(name, method, geometry=geometry, seed=seed, memory_bytes=exemplars, **network)
        self._belongs_to["memory_bytes"] = memory_bytes
        self.statistical = Statistical(geometry, seed, statistics)
        self.blend = 0.0
        self._held: ExemplarMemory | None = None

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        live = self.reference.live
        closed = self.statistical.learn_inside(self.reference, experience, train, validation, past)
        self.blend = 1.0  # of the network in training, for who watches it
        log = super()._learn(experience, train, validation, past, watch)
        held = validation.counts[:, live]
        if self._held is None:
            self._held = ExemplarMemory(held.shape[1], self._held_bytes, self._seed)
        rows = [*(self._held.of(k) for k in range(experience)), held]
        self.blend = self._chosen_blend(rows) if experience else 0.0
        self._held.add(held)
        log.flops += closed.flops
        log.notes |= closed.notes | {"blend": self.blend}
        return log

    def _prior_of(self, material: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        return {k: self._closed_log_p(counts).astype(np.float32) for k, counts in material.items()}

    def _closed_log_p(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(log_softmax(self.statistical.scores_of_live(counts), axis=1))

    def _chosen_blend(self, rows: list[np.ndarray]) -> float:
        """α by held-out lumisections, counts (n, live) of each class, every class that has some with the same weight."""
        sizes = np.array([len(counts) for counts in rows])
        if not sizes.any():
            return 0.0
        label = np.repeat(np.arange(len(rows)), sizes)
        weight = (1 / (np.count_nonzero(sizes) * np.maximum(sizes, 1)))[label]
        counts = np.concatenate(rows).astype(np.float32)
        closed, network = self._closed_log_p(counts), self.network_scores(counts)
        place = np.arange(len(label)), label
        log_p = np.stack([log_softmax(closed + blend * network, axis=1)[place] for blend in BLENDS])
        gain = log_p - log_p[0]
        mean = gain @ weight
        error = np.sqrt(((gain - mean[:, None]) ** 2) @ weight**2)
        best = int(mean.argmax())
        return float(BLENDS[best]) if mean[best] > error[best] else 0.0

    def scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, self.reference.live]
        closed = self._closed_log_p(counts)
        return closed + self.blend * self.network_scores(counts) if self.blend else closed

    def state(self) -> dict[str, np.ndarray]:
        state = super().state() | prefixed("statistical", self.statistical.state())
        if self._held is not None:
            state |= prefixed("held", self._held.state()) | {"blend": np.array(self.blend)}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        self.statistical.restore(within(state, "statistical"))
        self._held, self.blend = None, 0.0
        if self.classes:
            self._held = ExemplarMemory(int(self.reference.live.sum()), self._held_bytes, self._seed)
            self._held.restore(within(state, "held"))
            if "blend" not in state:
                raise StateError(f"the state of {self.name} lacks its blend; it is damaged")
            self.blend = float(state["blend"])

    def memory_bytes(self) -> int:
        held = 0 if self._held is None else self._held.memory_bytes()
        return super().memory_bytes() + held + self.statistical.memory_bytes()

    def state_bytes(self) -> int:
        return super().state_bytes() + self.statistical.state_bytes()
