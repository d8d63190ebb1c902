"""Hybrid: a pool of closed forms and a network, weighted by lumisections that none of them was fitted to.

    log p(k | x) = log softmax_k ( sum_i w_i s_i(x, k) + w f_k(x) )

s_i: log-probability of run k by a closed form (`closed_form.pool`), f_k: by the network, which is taught by replay of
lumisections that are kept. All weights are chosen after each run by the likelihood of held-out lumisections
(`closed_form.pool_weights`). The network's own recipe is a quadratic one, which sees what moves together; a transformer by
`--set model=` costs six times as much and adds no more (docs/decisions/2026-11-29-network-outside-the-law.md).

Where held-out lumisections do not show that the network adds to the closed forms, it has no weight, and the next runs are
taught with a share of the steps only, a probe; once it adds something, with all of them.
Source: products of experts (Hinton, Neural Computation 14 (2002) 1771).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.learners.closed_form.pool import HeldOut, Pool, usual_weights
from dqmstream.learners.closed_form.pool_weights import PoolWeights, fit_weights, mean_gain
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

NETWORK = "network"

PROBE = 0.125
"""Share of the training steps while the network adds nothing."""

FULL_RUNS = 3
"""Runs that are taught with all steps before its weight is looked at: with two or three runs, most networks add nothing yet."""

STANDARD_ERRORS = 1.0
"""By how many standard errors the network must raise the likelihood of held-out lumisections to have weight, and all steps."""


SHARE_METHOD, SHARE_HELD_OUT = 0.4, 0.2
"""Largest parts of the budget, for lumisections to train on and for held-out ones: at 1 MB 1650 packed and 107 whole ones.
Where the closed forms need more than the rest, they take it from both."""


@register_strategy("hybrid")
class Hybrid(DeepStrategy):
    """A pool of closed forms, and a network beside it."""

    def __init__(self, *, geometry: Geometry, seed: int, memory_bytes: int, **network: Any) -> None:
        """memory_bytes: budget for all that is kept. network: `recipe` and `device`, as in `DeepStrategy`."""
        beside_bytes = memory_bytes - int(SHARE_METHOD * memory_bytes)
        super().__init__(
            "hybrid", Replay, geometry=geometry, seed=seed, memory_bytes=memory_bytes, beside_bytes=beside_bytes, **network
        )
        self._most_bytes = {"method": self._method.budget_bytes, "held": int(SHARE_HELD_OUT * memory_bytes)}
        self._memory_bytes = memory_bytes
        self._new_pool = lambda: Pool(geometry, seed, memory_bytes)
        self._clear_pool()

    def _clear_pool(self) -> None:
        self.pool = self._new_pool()
        self.statistical = self.pool.statistical
        self._held = HeldOut(self._seed)
        self.chosen = usual_weights(self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.pool.parts, NETWORK)

    @property
    def weights(self) -> np.ndarray:
        """Weights of the parts that are kept, and of the network: (parts + 1,)."""
        return self.chosen.weights

    def _share_out(self) -> None:
        left = max(self._memory_bytes - self.pool.memory_bytes(), 0)
        part = SHARE_METHOD / (SHARE_METHOD + SHARE_HELD_OUT)
        self._method.budget_bytes = min(self._most_bytes["method"], int(part * left))
        self._held.budget_bytes = min(self._most_bytes["held"], left - self._method.budget_bytes)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        of_pool = self.pool.learn(self.reference, experience, train, validation, past)
        self._share_out()
        before = self.chosen.of(self._names)
        # While the network is trained, a watch may ask for scores: they follow it.
        self.chosen = usual_weights(self._names)
        self.chosen.weights[-1] = 1.0
        log = super()._learn(experience, train, validation, past, watch)
        self.chosen = before
        log.flops += of_pool.flops
        log.notes |= of_pool.notes | {"effort": self.effort}
        held = validation.counts[:, self.reference.live]
        counts, label = self._held.with_new(held)
        if len(np.unique(label)) > 1:
            scores = self._log_probabilities(counts)
            usual = usual_weights(self._names).weights
            with_network = fit_weights(self._names, scores, label, usual)
            closed = fit_weights(self._names[:-1], scores[:-1], label, usual[:-1])
            gain, error = mean_gain(scores, label, with_network.weights, np.append(closed.weights, 0.0))
            log.notes |= {"network_gain": gain, "network_gain_error": error}
            adds = gain > STANDARD_ERRORS * error
            self.chosen = with_network if adds else closed.with_part(NETWORK)
            self.effort = 1.0 if adds or experience < FULL_RUNS else PROBE
        self._held.add(held)
        log.notes |= self.chosen.notes()
        return log

    def _log_probabilities(self, counts: np.ndarray) -> np.ndarray:
        """Log-probabilities by each part and by the network, (parts + 1, n, classes)."""
        return np.concatenate([self.pool.log_probabilities(counts), self.network_scores(counts)[None]])

    def _scores(self, maps: Maps) -> np.ndarray:
        counts, weights = maps.counts[:, self.reference.live], self.weights
        if weights[-1]:
            return np.asarray(np.tensordot(weights, self._log_probabilities(counts), 1))
        return np.asarray(np.tensordot(weights[:-1], self.pool.log_probabilities(counts), 1))

    def state(self) -> dict[str, np.ndarray]:
        state = super().state()
        if self.classes:
            state |= prefixed("parts", self.pool.state()) | prefixed("held", self._held.state())
            state |= prefixed("chosen", self.chosen.state())
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._clear_pool()
        if int(state.get("classes", 0)):
            self.pool.restore(within(state, "parts"))
        self._share_out()
        super().restore(state)
        if self.classes:
            self._held.restore(within(state, "held"), int(self.reference.live.sum()))
            self.chosen = PoolWeights.from_state(within(state, "chosen"))

    def memory_bytes(self) -> int:
        return self._method.memory_bytes() + self.pool.memory_bytes() + self._held.memory_bytes()

    def state_bytes(self) -> int:
        return super().state_bytes() + self.pool.state_bytes()
