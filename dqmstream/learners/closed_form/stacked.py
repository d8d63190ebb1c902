"""Stacked: several closed forms in one log-linear pool, weighted by lumisections that none of them was fitted to.

    statistical    gains and common modes of readout boxes, on counts with outages filled in
    modes          gains, variances and common or free modes, on the same counts
    outages        rates of outages
    slda           mean residuals, and one covariance for all runs
    naive_bayes    mean and variance of each channel

No law need hold: where one part is wrong, held-out lumisections give the weight to others (`pool_weights`). After each run all
weights are chosen anew from the run's validation blocks and a uniform sample of all past ones. What was tried:
docs/decisions/2026-11-29-mixture-of-densities.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.closed_form.modes import Modes, without_outages
from dqmstream.learners.closed_form.naive_bayes import NaiveBayes
from dqmstream.learners.closed_form.outages import OutageRates
from dqmstream.learners.closed_form.pool_weights import PoolWeights, fit_weights
from dqmstream.learners.closed_form.slda import Slda
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

PARTS = ("statistical", "outages", "modes", "slda", "naive_bayes")
"""Parts, the first to be kept first: where the budget is full, the last one is dropped for good."""

USUAL = {"statistical": 0.5, "outages": 1.0, "modes": 0.5, "slda": 0.0, "naive_bayes": 0.0}
"""Weights before lumisections are held out. Outages are independent of the other two, which both hold the gains."""

SHARE_HELD_OUT, LEAST_HELD_OUT = 0.5, 0.05
"""Largest and smallest part of the budget for held-out lumisections."""

_SHARE_SLDA = 0.25
"""Part of the budget for `slda`: means of 60 runs and a small sketch of the covariance, at 1 MB."""


class Pool:
    """The closed forms of the pool, which learn and score the same lumisections."""

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of everything, also of what a strategy keeps beside the parts."""
        self.budget_bytes = memory_bytes
        self.statistical = Statistical(geometry, seed, int((1 - LEAST_HELD_OUT) * memory_bytes))
        self._outages = OutageRates(geometry, seed)
        self._modes = Modes(geometry, seed, memory_bytes, self.statistical)
        self._beside = {
            "outages": self._outages,
            "modes": self._modes,
            "slda": Slda(geometry, seed, int(_SHARE_SLDA * memory_bytes)),
            "naive_bayes": NaiveBayes(geometry, seed),
        }
        self._dropped: list[str] = []

    @property
    def parts(self) -> dict[str, Incremental]:
        """The parts that are kept, in order."""
        every: dict[str, Incremental] = {"statistical": self.statistical, **self._beside}
        return {name: part for name, part in every.items() if name not in self._dropped}

    def learn(
        self, reference: Reference, experience: int, train: Maps, validation: Maps, past: Past
    ) -> LearnLog:
        """Learn a run with every part; arguments as `Incremental.learn_inside`."""
        counts = without_outages(reference, train.counts[:, reference.live]).astype(np.float32)
        clean = Maps(reference.to_map(counts), train.n_events, train.pileup, train.lumisection)
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
        maps = Maps(reference.to_map(counts.astype(np.float32)), *(np.zeros(len(counts)) for _ in range(2)), np.zeros(len(counts)))
        scores = []
        for name, part in self.parts.items():
            if name == "statistical":
                found = self.statistical.scores_of_live(clean)
            elif name == "modes":
                found = self._modes.scores_of_live(clean)
            else:
                found = part._scores(maps)
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

    def restore(self, state: Mapping[str, np.ndarray], classes: int) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged."""
        self._dropped = [name for name in PARTS if classes and not within(state, name)]
        if "statistical" in self._dropped:
            raise StateError("the state lacks the statistical part; it is damaged or of an earlier version: start a new state")
        for name, part in self.parts.items():
            part.restore(within(state, name) or {STAMP: stamp(part._belongs_to)})


class HeldOut:
    """Held-out lumisections of all runs, and the weights of the pool that follow from them."""

    def __init__(self, seed: int, budget_bytes: int) -> None:
        self._seed, self.budget_bytes = seed, budget_bytes
        self._memory: ExemplarMemory | None = None

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


def usual_weights(names: Sequence[str]) -> np.ndarray:
    """Weights of parts before lumisections are held out: (parts,)."""
    return np.array([USUAL.get(name, 0.0) for name in names])


@register_strategy("stacked")
class Stacked(Incremental):
    """The pool as a strategy of its own; without PyTorch."""

    name = "stacked"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of all that is kept, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes)
        self._memory_bytes = memory_bytes
        self.pool = Pool(geometry, seed, memory_bytes)
        self._held = HeldOut(seed, int(SHARE_HELD_OUT * memory_bytes))
        self.chosen: PoolWeights | None = None

    @property
    def classes(self) -> int:
        return self.pool.statistical.classes

    @property
    def weights(self) -> np.ndarray:
        """Weights of the parts that are kept: (parts,)."""
        return usual_weights(tuple(self.pool.parts)) if self.chosen is None else self.chosen.weights

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        log = self.pool.learn(self.reference, experience, train, validation, past)
        held = validation.counts[:, self.reference.live]
        counts, label = self._held.with_new(held)
        self.chosen = None
        if len(np.unique(label)) > 1:
            self.chosen = fit_weights(self.pool.log_probabilities(counts), label, self.weights)
        left = self._memory_bytes - self.pool.memory_bytes()
        self._held.budget_bytes = min(int(SHARE_HELD_OUT * self._memory_bytes), max(left, 0))
        self._held.add(held)
        return log_with_weights(log, tuple(self.pool.parts), self.chosen, self.weights)

    def _scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, self.reference.live]
        return np.asarray(np.tensordot(self.weights, self.pool.log_probabilities(counts), 1))

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)}
        if self.classes:
            state |= self._reference_state() | prefixed("parts", self.pool.state()) | prefixed("held", self._held.state())
            state |= prefixed("chosen", weights_state(self.chosen))
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        self._restore_reference(state, known)
        self.pool = Pool(Geometry(self._belongs_to["depths"]), self._belongs_to["seed"], self._memory_bytes)
        self.pool.restore(within(state, "parts"), int(known))
        channels = int(self.reference.live.sum()) if known else 0
        left = self._memory_bytes - self.pool.memory_bytes()
        self._held.budget_bytes = min(int(SHARE_HELD_OUT * self._memory_bytes), max(left, 0))
        self._held.restore(within(state, "held"), channels)
        self.chosen = weights_from(within(state, "chosen"))

    def memory_bytes(self) -> int:
        return self.pool.memory_bytes() + self._held.memory_bytes()

    def state_bytes(self) -> int:
        return self._reference_bytes() + self.pool.state_bytes()


def log_with_weights(log: LearnLog, names: Sequence[str], chosen: PoolWeights | None, weights: np.ndarray) -> LearnLog:
    """The log with the weights of the pool, and their errors where they were chosen."""
    log.notes |= {f"weight_{name}": float(weight) for name, weight in zip(names, weights, strict=True)}
    if chosen is not None:
        log.notes |= {f"weight_error_{name}": float(error) for name, error in zip(names, chosen.errors, strict=True)}
        log.notes["held_out_log_likelihood"] = chosen.log_likelihood
    return log


def weights_state(chosen: PoolWeights | None) -> dict[str, np.ndarray]:
    """Weights as named arrays; {} before they are chosen."""
    if chosen is None:
        return {}
    return {
        "weights": chosen.weights.copy(), "errors": chosen.errors.copy(), "log_likelihood": np.array(chosen.log_likelihood)
    }  # fmt: skip


def weights_from(state: Mapping[str, np.ndarray]) -> PoolWeights | None:
    """Weights from `weights_state`. Raises StateError if an array is missing."""
    if not state:
        return None
    missing = [name for name in ("weights", "errors", "log_likelihood") if name not in state]
    if missing:
        raise StateError(f"the state's pool lacks {', '.join(missing)}; it is damaged")
    return PoolWeights(np.array(state["weights"]), np.array(state["errors"]), float(state["log_likelihood"]))
