"""The statistical memory's verdict and a network's, weighted by lumisections that neither was fitted to.

    log p(k | x) = log softmax (α s_k(x) + β f_k(x))

s: log-probabilities by the statistical memory (`learners.closed_form.statistical`), which is the closed form and forgets
nothing. f: those
of a network that is taught, half and half, by lumisections redrawn from the statistics and by real ones that are kept, so that
it knows what the statistics say and can learn what they do not. α: 0, 1/32, 1/16, ... 1, β: 0, 1/4, 1/2, 1, chosen after each
run by the likelihood of its validation blocks and of a few lumisections that are held out of every past run. They stay at 1
and 0, the closed form, unless another pair does better by more than two standard errors than the closed form at its best α,
which leaves open who is right where both are too sure; since either part alone is among the pairs, the whole is not worse than
a part by more than chance. A product of experts (Hinton, Neural Computation 14 (2002) 1771) with weights by
stacking (Wolpert, Neural Networks 5 (1992) 241).

Measured (seed 0, steps 32 and 60): on 12 runs of `small` the network has .77 taught by real lumisections, .83 by redrawn ones,
.79 by both; on 8 runs that differ by what the statistics do not hold (`tests/learners/gradient/test_hybrid.py`) .57, below
.33, .56.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.gradient.method import PastCounts
from dqmstream.learners.gradient.statistical_replay import StatisticalReplay
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch

_CHOICE = 2
"""Sets the choice of real lumisections apart from other uses of the strategy's seed."""

REAL = 0.5
"""Share of real lumisections among those of a class, where any are kept of it."""

_CLOSED, _NETWORK = (1.0, *(2.0**-k for k in range(1, 6)), 0.0), (0.0, 0.25, 0.5, 1.0)
WEIGHTS = np.array([(a, b) for b in _NETWORK for a in _CLOSED if a + b > 0])
"""Pairs α, β that are tried, the closed form first. On `year` the closed form named .73 of the lumisections of 100 runs, and
was so sure of the others that a grid without small α took the network alone, which names .70."""

SURE = 2.0
"""Standard errors by which another pair must do better: the best of 26 is better by one of them by chance."""

FEWEST = 40
"""Lumisections of past runs that must be held out for it: an error by fewer says little. With 20 to 33 of 616 to 765 runs of
`year` the network was let in four times, and took up to .08 of accuracy with it; with more of fewer runs never."""


class Hybrid(StatisticalReplay):
    """A gradient strategy around which the statistical memory stands."""

    share_method = 0.625
    share_held_out = 0.125
    """Of the budget at most. At 1 MB 330 lumisections are kept to train on and 64 held out until the statistics of 250 runs
    have filled what is left; then these grow at the others' expense, up to 1002 runs and no lumisection."""

    weights = WEIGHTS[0]
    """α, β."""
    _held: ExemplarMemory | None = None

    def __init__(self, *args: Any, memory_bytes: int, **kwargs: Any) -> None:
        """As `StatisticalReplay`."""
        super().__init__(*args, memory_bytes=memory_bytes, **kwargs)
        self._most_bytes = {"method": self._method.budget_bytes, "held": int(self.share_held_out * memory_bytes)}
        self._held_bytes = self._most_bytes["held"]

    def _share_out(self) -> None:
        left = self._share_bytes - self.statistical.memory_bytes()
        part = self.share_method / (self.share_method + self.share_held_out)
        self._method.budget_bytes = min(self._most_bytes["method"], int(part * left))
        self._held_bytes = min(self._most_bytes["held"], left - self._method.budget_bytes)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        self.weights = np.ones(2)  # in training, for who watches it
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
        # A uniform choice of all past lumisections. Equal shares leave out late runs once there are more runs than places,
        # and speak for those that the network has real lumisections of: at 300 runs of `year` that lost .05 of accuracy.
        return ExemplarMemory(channels, self._held_bytes, self._seed, "reservoir", least=0)

    def _material(self, experience: int, counts: np.ndarray, past: PastCounts) -> Mapping[int, np.ndarray]:
        real = self._method.material(experience, counts, past)
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
        """α, β by held-out lumisections, counts (n, live) of each class, every class that has some with the same weight.

        The last class is the new run's, by its validation blocks.
        """
        sizes = np.array([len(counts) for counts in rows])
        if sizes[:-1].sum() < FEWEST:
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
        return WEIGHTS[best] if gain @ share > SURE * error else WEIGHTS[0]

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
