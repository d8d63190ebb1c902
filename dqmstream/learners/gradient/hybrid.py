"""Hybrid: scores of the statistical memory and of a network, weighted by lumisections that neither was fitted to.

    log p(k | x) = log softmax_k (α s_k(x) + β f_k(x))

s_k: log-probability of run k by the statistical memory (`learners.closed_form.statistical`), f_k: by a network. The network
trains half on lumisections redrawn from the statistics, half on real ones that are kept. After each run α and β are chosen from
a grid by the likelihood of held-out lumisections: the run's validation blocks, and a few of every past run. They stay at 1 and
0, the closed form alone, unless another pair beats the closed form at its best α by more than two standard errors.
Sources: products of experts (Hinton, Neural Computation 14 (2002) 1771), stacking (Wolpert, Neural Networks 5 (1992) 241).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.gradient.method import PastCounts
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.statistical_replay import StatisticalReplay
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch

_CHOICE = 2
"""Part of the seed of the choice of real lumisections."""

REAL = 0.5
"""Share of real lumisections in the material of a class, if any of it are kept."""

_CLOSED, _NETWORK = (1.0, *(2.0**-k for k in range(1, 6)), 0.0), (0.0, 0.25, 0.5, 1.0)
WEIGHTS = np.array([(a, b) for b in _NETWORK for a in _CLOSED if a + b > 0])
"""Grid of α, β, the closed form first. Small α are needed where the closed form is too sure of itself."""

STANDARD_ERRORS = 2.0
"""By how many standard errors another pair must be better: the best of 26 is better by one of them by chance."""

FEWEST_HELD_OUT = 40
"""Held-out lumisections of past runs without which α, β stay at 1, 0."""


class Hybrid(StatisticalReplay):
    """The statistical memory and a network beside it."""

    share_method = 0.625
    share_held_out = 0.125
    """Largest parts of the budget, for lumisections to train on and for held-out ones: at 1 MB 330 and 64 lumisections. From
    250 runs on the statistics need more than the rest and take it from both, until at 1002 runs no lumisection is kept."""

    weights = WEIGHTS[0]
    """α, β."""
    _held: ExemplarMemory | None = None

    def __init__(self, *args: Any, memory_bytes: int, **kwargs: Any) -> None:
        """Arguments as for `StatisticalReplay`."""
        super().__init__(*args, memory_bytes=memory_bytes, **kwargs)
        self._most_bytes = {"method": self._method.budget_bytes, "held": int(self.share_held_out * memory_bytes)}
        self._held_bytes = self._most_bytes["held"]

    def _share_out(self) -> None:
        left = self._share_bytes - self.statistical.memory_bytes()
        part = self.share_method / (self.share_method + self.share_held_out)
        self._method.budget_bytes = min(self._most_bytes["method"], int(part * left))
        self._held_bytes = min(self._most_bytes["held"], left - self._method.budget_bytes)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        self.weights = np.ones(2)  # during the training, in which a watch may ask for scores
        log = super()._learn(experience, train, validation, past, watch)
        held = validation.counts[:, self.reference.live]
        if self._held is None:
            self._held = self._empty(held.shape[1])
        rows = [*(self._held.of(k) for k in range(experience)), held]
        self.weights = self._chosen_weights(rows) if experience else WEIGHTS[0]
        self._held.budget_bytes = self._held_bytes
        self._held.add(held)
        log.notes |= {"weight_statistics": float(self.weights[0]), "weight_network": float(self.weights[1])}
        return log

    def _empty(self, channels: int) -> ExemplarMemory:
        # A uniform choice of all past lumisections. With equal shares a run each, late runs would have none once there are
        # more runs than places, and the others would be those of which the network has real lumisections.
        return ExemplarMemory(channels, self._held_bytes, self._seed, "reservoir", least=0)

    def _material(self, experience: int, counts: np.ndarray, past: PastCounts) -> Mapping[int, np.ndarray]:
        real = self._method.material(experience, {experience: counts}, past)
        rng = np.random.default_rng([self._seed, experience, _CHOICE])
        material = {}
        for k, drawn in super()._material(experience, counts, past).items():
            chosen = int(REAL * len(drawn)) if k in real else 0
            kept = real[k][rng.integers(len(real[k]), size=chosen)] if chosen else drawn[:0]
            material[k] = np.concatenate([kept.astype(np.float32), drawn[chosen:]])
        return material

    def _closed_log_p(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(log_softmax(self.statistical.scores_of_live(counts), axis=1))

    def _chosen_weights(self, rows: list[np.ndarray]) -> np.ndarray:
        """α, β by held-out lumisections: counts (n, live) of each class, the new run's last. Classes have equal weights."""
        sizes = np.array([len(counts) for counts in rows])
        if sizes[:-1].sum() < FEWEST_HELD_OUT:
            return WEIGHTS[0]
        label = np.repeat(np.arange(len(rows)), sizes)
        share = (1 / (np.count_nonzero(sizes) * np.maximum(sizes, 1)))[label]
        counts = np.concatenate(rows).astype(np.float32)
        closed, network = self._closed_log_p(counts), self.network_scores(counts)
        place = np.arange(len(label)), label
        log_p = np.stack([log_softmax(a * closed + b * network, axis=1)[place] for a, b in WEIGHTS])
        mean = log_p @ share
        best, alone = int(mean.argmax()), int(np.where(WEIGHTS[:, 1] == 0, mean, -np.inf).argmax())
        gain = log_p[best] - log_p[alone]
        error = np.sqrt((gain - gain @ share) ** 2 @ share**2)
        return WEIGHTS[best] if gain @ share > STANDARD_ERRORS * error else WEIGHTS[0]

    def _scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, self.reference.live]
        closed, network = self.weights
        scores = closed * self._closed_log_p(counts)
        return scores + network * self.network_scores(counts) if network else scores

    def state(self) -> dict[str, np.ndarray]:
        state = super().state()
        if self._held is not None:
            state |= prefixed("held", self._held.state()) | {"weights": self.weights.copy()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        self._held, self.weights = None, WEIGHTS[0]
        if self.classes:
            self._held = self._empty(int(self.reference.live.sum()))
            self._held.restore(within(state, "held"))
            if "weights" not in state:
                raise StateError(f"the state of {self.name} lacks its weights; it is damaged")
            self.weights = np.array(state["weights"])

    def memory_bytes(self) -> int:
        return super().memory_bytes() + (0 if self._held is None else self._held.memory_bytes())


@register_strategy("hybrid")
def hybrid(**arguments: Any) -> Hybrid:
    """Hybrid with replay's memory of real lumisections."""
    return Hybrid("hybrid", Replay, **arguments)
