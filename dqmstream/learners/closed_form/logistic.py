"""Logistic regression, fitted again at each run: the linear classifier that a network has to beat.

It keeps exemplars of past runs within a budget of bytes, as replay does, and nothing else of them. It does not need PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

STRENGTH = 0.1
"""Strength of the L2 penalty (docs/decisions/2026-11-29-closed-forms.md)."""

TOLERANCE = 1e-5
"""A fit has converged when no derivative of the loss is larger."""

MOST_ITERATIONS = 1000


@register_strategy("logistic")
class Logistic(Incremental):
    """Multinomial logistic regression on the residuals r to the reference, with the same weight for each of K classes:

        minimise over W:  1/K sum_k mean over class k of -log p(k | r)  +  strength / 2 sum W²,    p = softmax(W [r, 1])

    The data are the new run's train part and the exemplars of all runs before it. The fit is by L-BFGS in float64, from W = 0
    to convergence, so it depends on its data alone. Sources: Bishop, Pattern Recognition and Machine Learning (2006), sec.
    4.3.4; experience replay: Chaudhry et al. 2019 (arXiv:1902.10486).
    """

    name = "logistic"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of all exemplars, for the whole stream."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes, strength=STRENGTH)
        self._seed, self._budget_bytes = seed, memory_bytes
        self._memory: ExemplarMemory | None = None
        self._weights = np.zeros((0, 0))

    @property
    def classes(self) -> int:
        return len(self._weights)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        counts = train.counts[:, self.reference.live]
        if self._memory is None:
            self._memory = ExemplarMemory(counts.shape[1], self._budget_bytes, self._seed)
        log = LearnLog(samples=len(counts), flops=self.reference.response_flops(len(counts)))
        self._weights = np.zeros((experience + 1, counts.shape[1] + 1))
        if experience > 0:
            log = self._fit([*(self._memory.of(k) for k in range(experience)), counts])
        self._memory.add(counts)
        return log

    def _fit(self, by_class: list[np.ndarray]) -> LearnLog:
        """Fit the weights. by_class: counts (n, live) of each class; classes without any are left out of the mean.

        Flops: those of the residuals, and 4 x rows x features x classes for each evaluation (two matrix products).
        """
        sizes = np.array([len(counts) for counts in by_class])
        label = np.repeat(np.arange(len(sizes)), sizes)
        weight = (1 / (np.count_nonzero(sizes) * sizes[sizes > 0])).repeat(sizes[sizes > 0])
        features = with_one(self.reference.residuals_of_live(np.concatenate(by_class)))
        shape = self._weights.shape
        row = np.arange(len(label))

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            log_p = log_softmax(features @ flat.reshape(shape).T, axis=1)
            value = -(weight * log_p[row, label]).sum() + STRENGTH / 2 * flat @ flat
            error = np.exp(log_p)
            error[row, label] -= 1
            return value, ((weight[:, None] * error).T @ features).ravel() + STRENGTH * flat

        start = np.zeros(self._weights.size)
        found = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"gtol": TOLERANCE, "ftol": 0.0, "maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS},
        )
        self._weights = found.x.reshape(shape)
        return LearnLog(
            samples=found.nfev * len(label),
            flops=self.reference.response_flops(len(label)) + 4.0 * found.nfev * features.size * len(sizes),
            notes={"iterations": found.nit, "largest_derivative": float(np.abs(found.jac).max()), "fit_loss": float(found.fun)},
        )

    def _scores(self, maps: Maps) -> np.ndarray:
        return with_one(self.reference.residuals(maps.counts)) @ self._weights.T

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to), "weights": self._weights.copy()} | self._reference_state()
        return state if self._memory is None else state | prefixed("memory", self._memory.state())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        if "weights" not in state:
            raise StateError(f"the state of {self.name} lacks its weights; it is damaged")
        weights = np.array(state["weights"])
        self._restore_reference(state, known=len(weights) > 0)
        self._memory = None
        if len(weights):
            channels = int(self.reference.live.sum())
            if weights.shape[1] != channels + 1:
                raise StateError(f"the state's weights of shape {weights.shape} are not of {channels} channels; it is damaged")
            self._memory = ExemplarMemory(channels, self._budget_bytes, self._seed)
            self._memory.restore(within(state, "memory"))
        self._weights = weights

    def memory_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.memory_bytes()

    def state_bytes(self) -> int:
        """Bytes of the weights, one row a run, and of the reference."""
        return self._weights.nbytes + self._reference_bytes()


def with_one(residuals: np.ndarray) -> np.ndarray:
    """Residuals (n, live) with a column of ones for the bias: float64, (n, live + 1)."""
    return np.concatenate([residuals, np.ones((len(residuals), 1))], axis=1, dtype=np.float64)
