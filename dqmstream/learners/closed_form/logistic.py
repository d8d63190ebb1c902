"""Logistic regression: the linear classifier that a gradient learner has to beat, fitted anew at each run without torch.

It keeps exemplars of past runs within the memory's bytes, as replay does, and nothing else of them.
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
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

STRENGTH = 0.1
"""Of the L2 penalty. Accuracy over 20 runs of `small`, seeds 0 and 1: .780 with .03, .777 with .3, .763 with 1, .735 with 3;
over seeds 0-2: .750 with .01, .752 with .1, .748 with .3 (`moderate`: .934, .933, .931)."""

TOLERANCE = 1e-5
"""A fit has converged when no derivative is larger."""

MOST_ITERATIONS = 1000


class Logistic(Incremental):
    """Multinomial logistic regression on the residuals r to the reference, every class with the same weight:

        min over W of  1/K sum_k mean over x of class k of -log p(k | x)  +  strength / 2 sum W²,    p = softmax(W [r, 1])

    by L-BFGS in float64 from W = 0 to convergence, so a fit depends on its data alone. The data are the new run's train part
    and the exemplars that are kept of all before it. Source: Bishop, Pattern Recognition and Machine Learning (2006), sec.
    4.3.4; experience replay as in Chaudhry et al. 2019 (arXiv:1902.10486).
    """

    name = "logistic"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: of all exemplars, for the whole stream."""
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
        """Set the weights. by_class: counts (n, live) of each class; one of which nothing is left has no part in the mean.

        Flops: 4 rows features classes for each value and gradient (two products of matrices), and those of the residuals.
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
        """The weights, one row a run, and the reference."""
        return self._weights.nbytes + self._reference_bytes()


def with_one(residuals: np.ndarray) -> np.ndarray:
    """Residuals (n, live) and a column of ones, whose weight is the bias: float64, shape (n, live + 1)."""
    return np.concatenate([residuals, np.ones((len(residuals), 1))], axis=1, dtype=np.float64)
