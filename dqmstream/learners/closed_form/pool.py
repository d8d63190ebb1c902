"""Pool: several closed forms that learn the same runs, and the lumisections that are held out to weigh them.

    statistical    gains and common modes of readout boxes, on counts with outages filled in
    modes          gains, variances and common or free modes, on the same counts
    outages        rates of outages
    gain_map       gains of each run alone, where those of neighbouring runs are no guide
    slda           mean residuals, and one covariance for all runs
    naive_bayes    mean and variance of each channel

What was tried: docs/decisions/2026-11-29-mixture-of-densities.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.modes import Modes, without_outages
from dqmstream.learners.closed_form.naive_bayes import NaiveBayes
from dqmstream.learners.closed_form.outages import OutageRates
from dqmstream.learners.closed_form.pool_weights import PoolWeights, fit_weights
from dqmstream.learners.closed_form.slda import Slda
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past
from dqmstream.lumisection import Geometry

PARTS = ("statistical", "outages", "modes", "gain_map", "slda", "naive_bayes")
"""Parts, the first to be kept first: where the budget is full, the last one is dropped for good."""

USUAL = {"statistical": 0.5, "outages": 1.0, "modes": 0.5, "gain_map": 0.0, "slda": 0.0, "naive_bayes": 0.0}
"""Weights before lumisections are held out. Outages are independent of the other two, which both hold the gains."""

SHARE_HELD_OUT, LEAST_HELD_OUT = 0.5, 0.05
"""Largest and smallest part of the budget for held-out lumisections."""

_SHARE_SLDA = 0.25
"""Part of the budget for `slda`: means of a hundred runs and a small sketch of the covariance, at 1 MB."""

_LEAST_SLDA = 50_000
"""Bytes below which `slda` is left out."""


class Pool:
    """The closed forms of the pool, which learn and score the same lumisections."""

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of everything, also of what a strategy keeps beside the parts."""
        self.budget_bytes = memory_bytes
        self.statistical = Statistical(geometry, seed, memory_bytes)
        self._outages = OutageRates(geometry, seed)
        self._modes = Modes(geometry, seed, memory_bytes, self.statistical)
        self._beside = {
            "outages": self._outages,
            "modes": self._modes,
            "gain_map": GainMap(geometry, seed),
            "slda": Slda(geometry, seed, int(_SHARE_SLDA * memory_bytes)),
            "naive_bayes": NaiveBayes(geometry, seed),
        }
        self._dropped = ["slda"] if _SHARE_SLDA * memory_bytes < _LEAST_SLDA else []

    @property
    def parts(self) -> dict[str, Incremental]:
        """The parts that are kept, in order."""
        every: dict[str, Incremental] = {"statistical": self.statistical, **self._beside}
        return {name: part for name, part in every.items() if name not in self._dropped}

    def learn(self, reference: Reference, experience: int, train: Maps, validation: Maps, past: Past) -> LearnLog:
        """Learn a run with every part; arguments as `Incremental.learn_inside`."""
        counts = without_outages(reference, train.counts[:, reference.live]).astype(np.float32)
        clean = replace(train, counts=reference.to_map(counts))
        log = LearnLog(samples=len(train))
        for name, part in self.parts.items():
            learnt = part.learn_inside(
                reference, experience, clean if name in ("statistical", "modes") else train, validation, past
            )
            log.flops += learnt.flops
            log.notes |= learnt.notes
        self._drop_to_fit()
        log.notes["parts"] = float(len(self.parts))
        return log

    def _drop_to_fit(self) -> None:
        room = int((1 - LEAST_HELD_OUT) * self.budget_bytes)
        self._modes.budget_bytes = room
        for name in reversed(PARTS[1:]):
            if self.memory_bytes() <= room:
                return
            if name not in self._dropped:
                self._dropped.append(name)

    def log_probabilities(self, counts: np.ndarray) -> np.ndarray:
        """Log-probabilities of the classes by each part, (parts, n, classes), from counts of the live channels, (n, live)."""
        reference = self.statistical.reference
        clean = without_outages(reference, counts).astype(np.float32)
        blank = reference.blank(counts)
        nothing = np.full(len(counts), np.nan)
        maps = Maps(reference.to_map(counts.astype(np.float32)), nothing, nothing, np.arange(len(counts)))
        scores = []
        for name, part in self.parts.items():
            if name == "statistical":
                found = self.statistical.scores_of_live(clean)
            elif name == "modes":
                found = self._modes.scores_of_live(clean)
            else:
                found = part.scores_inside(maps)
            scores.append(log_softmax(np.where(blank[:, None], 0.0, found), axis=1))
        return np.stack(scores)

    def memory_bytes(self) -> int:
        """Bytes of all parts that are kept."""
        return sum(part.memory_bytes() for part in self.parts.values())

    def state_bytes(self) -> int:
        """Bytes of what does not count as kept of past runs."""
        return sum(part.state_bytes() for part in self.parts.values())

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: array for part in self.parts for name, array in prefixed(part, self.parts[part].state()).items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave, of a pool that has learnt. Raises StateError if it is damaged."""
        self._dropped = [name for name in PARTS if not within(state, name)]
        if "statistical" in self._dropped:
            raise StateError("the state lacks the statistical part; it is damaged or of an earlier version: start a new state")
        for name, part in self.parts.items():
            part.restore(within(state, name))


class HeldOut:
    """Held-out lumisections of all runs, and the weights of the pool that follow from them."""

    def __init__(self, seed: int) -> None:
        self._seed, self.budget_bytes = seed, 0
        self._memory: ExemplarMemory | None = None

    def choose(
        self, names: Sequence[str], held: np.ndarray, scores: Callable[[np.ndarray], np.ndarray], before: PoolWeights
    ) -> PoolWeights:
        """Weights of the named parts by all held-out lumisections; the weights before, where there is one run only.

        held: counts of the new run's held-out lumisections, (n, live). scores: log-probabilities of the classes by each part,
        (parts, n, classes), from counts.
        """
        counts, label = self.with_new(held)
        if len(np.unique(label)) < 2:
            return before
        return fit_weights(names, scores(counts), label, usual_weights(names).weights)

    def with_new(self, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Held-out counts of all runs, (n, live), and their classes, (n,); `held`: those of the new run."""
        kept = [] if self._memory is None else [self._memory.of(k) for k in range(self._memory.classes)]
        rows = [*kept, held]
        return np.concatenate(rows).astype(np.float32), np.repeat(np.arange(len(rows)), [len(row) for row in rows])

    def add(self, held: np.ndarray) -> None:
        """Keep a uniform choice of all held-out lumisections so far, with those of the new run, (n, live).

        With equal shares a run each, late runs would have none once there are more runs than places.
        """
        if self._memory is None:
            self._memory = self._empty(held.shape[1])
        self._memory.budget_bytes = self.budget_bytes
        self._memory.add(held)

    def _empty(self, channels: int) -> ExemplarMemory:
        return ExemplarMemory(channels, self.budget_bytes, self._seed, "reservoir", least=0)

    def memory_bytes(self) -> int:
        """Bytes of the lumisections."""
        return 0 if self._memory is None else self._memory.memory_bytes()

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {} if self._memory is None else self._memory.state()

    def restore(self, state: Mapping[str, np.ndarray], channels: int) -> None:
        """Return to a state that `state` gave; {} is no lumisection. Raises StateError if it is damaged."""
        self._memory = self._empty(channels) if state else None
        if self._memory is not None:
            self._memory.restore(state)


def usual_weights(names: Sequence[str]) -> PoolWeights:
    """Weights of the named parts before lumisections are held out."""
    return PoolWeights(tuple(names), np.array([USUAL.get(name, 0.0) for name in names]), np.zeros(len(names)))
