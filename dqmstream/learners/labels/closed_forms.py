"""Closed forms of the task of labels: logistic regression on one number of a lumisection or a few, learnt period by period.

    minimise over w:  sum over rows of the period of -log p(label | φ(x))  +  1/2 (w - w*)ᵀ Λ (w - w*),    then  Λ <- Hessian

φ: the numbers. w*, Λ: weights and precision before the period, at first 0 and a weak prior. This is the Laplace approximation
of the posterior, carried on (Bishop, Pattern Recognition and Machine Learning, 2006, sec. 4.5): what elastic weight
consolidation approximates by a diagonal. Nothing is kept of past lumisections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from scipy.special import expit, log_expit

from dqmstream.errors import StateError
from dqmstream.learners.labels.rows import CONDITIONS, Rows, decoded
from dqmstream.learners.labels.strategy import Period
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog
from dqmstream.lumisection import IETA, IPHI, readout_box, readout_module

Features = Callable[[Rows, np.ndarray], np.ndarray]
"""Makes φ, float64 (n, F), from rows and the live channels, bool (depth, 64, 72)."""

PRIOR = 1e-2
"""Precision of each weight before the first period; φ are of the order of 1."""

ROUNDS = 30
"""Newton steps at most; they end where no weight moves by more than 1e-9."""


def fault_score(rows: Rows, live: np.ndarray) -> np.ndarray:
    """The log-odds of the fault score, cut at ±30, over 10: they use all earlier lumisections of the run."""
    return np.clip(rows.fault, -30.0, 30.0)[:, None] / 10


def z_score(rows: Rows, live: np.ndarray) -> np.ndarray:
    """The largest |residual| of a channel."""
    residuals = decoded(rows.values)[:, :-CONDITIONS]
    return np.abs(residuals).max(axis=1, keepdims=True).astype(np.float64)


def conditions(rows: Rows, live: np.ndarray) -> np.ndarray:
    """Conditions alone, and their squares: what labels leak by luminosity."""
    given = decoded(rows.values)[:, -CONDITIONS:].astype(np.float64)
    return np.concatenate([given, given**2], axis=1)


def extremes(rows: Rows, live: np.ndarray) -> np.ndarray:
    """Largest and smallest residual of a channel, of a module's sum and of a box's sum, in deviations; and the conditions."""
    values = decoded(rows.values).astype(np.float64)
    residuals, given = values[:, :-CONDITIONS], values[:, -CONDITIONS:]
    sums = [residuals, *(residuals @ group.T for group in groups(live.shape, live.tobytes()))]
    ends = [end for part in sums for end in (part.max(axis=1), part.min(axis=1))]
    return np.concatenate([np.stack(ends, axis=1) / 3, given], axis=1)


CLOSED_FORMS: Mapping[str, Features] = {
    "fault_score": fault_score,
    "z_score": z_score,
    "logistic": extremes,
    "conditions": conditions,
}
"""Closed forms by name. `conditions` shows what luminosity alone says about the labels."""


@cache
def groups(shape: tuple[int, ...], live: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that sum residuals over a readout module and a readout box, over the root of their size: (groups, live)."""
    _, row, column = np.nonzero(np.frombuffer(live, dtype=bool).reshape(shape))
    found = []
    for number in (readout_module(IETA[row], IPHI[column]), readout_box(IETA[row], IPHI[column])):
        member = (np.unique(number)[:, None] == number).astype(np.float64)
        found.append(member / np.sqrt(member.sum(axis=1, keepdims=True)))
    return found[0], found[1]


class ClosedForm:
    """Logistic regression on φ, a `LabelStrategy`."""

    def __init__(self, name: str, live: np.ndarray) -> None:
        self.name = name
        self._live, self._features = live, CLOSED_FORMS[name]
        self._periods = 0
        self._weights = np.zeros(0)
        self._precision = np.zeros((0, 0))

    @property
    def periods(self) -> int:
        return self._periods

    def learn(self, period: Period) -> LearnLog:
        if period.number != self._periods:
            raise ValueError(f"period {period.number} cannot follow {self._periods} learnt ones")
        train = period.rows.of(Part.TRAIN)
        phi, label = self._phi(train), train.label.astype(np.float64)
        if not self._periods:
            self._weights, self._precision = np.zeros(phi.shape[1]), PRIOR * np.eye(phi.shape[1])
        before, weights = self._weights, self._weights
        hessian = self._precision
        for _ in range(ROUNDS):
            p = expit(phi @ weights)
            gradient = phi.T @ (p - label) + self._precision @ (weights - before)
            hessian = self._precision + (phi * (p * (1 - p))[:, None]).T @ phi
            step = np.linalg.solve(hessian, gradient)
            step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))  # Newton overshoots where labels are separable
            weights = weights - step
            if np.abs(step).max() < 1e-9:
                break
        self._weights, self._precision = weights, hessian
        self._periods += 1
        return LearnLog(samples=len(train), flops=float(2 * phi.size * phi.shape[1]))

    def scores(self, rows: Rows) -> np.ndarray:
        odds = self._phi(rows) @ self._weights if self._periods else np.zeros(len(rows))
        return np.stack([log_expit(-odds), log_expit(odds)], axis=1)

    def _phi(self, rows: Rows) -> np.ndarray:
        return np.concatenate([self._features(rows, self._live), np.ones((len(rows), 1))], axis=1)

    def state(self) -> dict[str, np.ndarray]:
        return {
            STAMP: stamp({"strategy": self.name}),
            "periods": np.array(self._periods),
            "weights": self._weights.copy(),
            "precision": self._precision.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, {"strategy": self.name})
        if not {"periods", "weights", "precision"} <= state.keys():
            raise StateError(f"the state of {self.name} lacks its weights; it is damaged")
        self._periods = int(state["periods"])
        self._weights, self._precision = np.array(state["weights"]), np.array(state["precision"])

    def memory_bytes(self) -> int:
        return 0

    def state_bytes(self) -> int:
        return self._precision.nbytes
