"""Ridge regression on random features: a run is learnt by adding to two sums, and the weights follow in closed form.

    h(r) = (max(P r, 0), 1),    G = mean over runs of h h',    W = (G + λ tr(G)/M I)⁻¹ [m_1 ... m_K] / K

    r      residuals to the reference
    P      random matrix, fixed by the seed
    M      number of features
    m_k    mean of h in run k: the right-hand side where target k is 1 in run k and 0 elsewhere
    λ      strength of the penalty (`STRENGTH`)

All runs have the same weight, and their order does not matter. The score of run k is w_k h / v, with v the mean square error of
the regression: the log-probability of target k for normal errors, up to a constant. Source: McDonnell et al. 2023, RanPAC
(arXiv:2307.02251), with residuals in place of a pretrained network's features.

Half of the budget is for G, which sets M: 499 with 1 MB. More features would be more accurate
(docs/decisions/2026-11-29-closed-forms.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.class_means import ClassMeans
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

STRENGTH = 1.0
"""λ (docs/decisions/2026-11-29-closed-forms.md)."""

SHARE_GRAM = 0.5
"""Share of the budget for G; the means of the runs have the rest."""


@register_strategy("ridge")
class Ridge(Incremental):
    """Learns a run in one pass; where the budget of bytes is full, the two nearest means become one."""

    name = "ridge"

    def __init__(self, geometry: Geometry, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget of the runs' means and of G, for the whole stream. seed: of the random features."""
        super().__init__(geometry, seed, memory_bytes=memory_bytes, strength=STRENGTH)
        self._seed = seed
        gram_bytes = int(SHARE_GRAM * memory_bytes)
        # The upper triangle in float32 takes 2 M (M + 1) bytes.
        self.features = (isqrt(1 + 2 * gram_bytes) - 1) // 2
        if self.features < 2:
            raise InputError(f"a memory of {memory_bytes} bytes leaves no room for features; raise --memory-bytes")
        self._triangle = np.triu_indices(self.features)
        self._means_bytes = memory_bytes - gram_bytes
        self._projection: np.ndarray | None = None
        self._clear()

    def _clear(self) -> None:
        self.means = ClassMeans(self._means_bytes, np.float32)
        self._gram = np.zeros(len(self._triangle[0]), dtype=np.float32)
        self._solved: np.ndarray | None = None

    @property
    def classes(self) -> int:
        return len(self.means)

    def features_of(self, maps: Maps) -> np.ndarray:
        """h of each lumisection: float64, (n, M)."""
        residuals = self.reference.residuals(maps.counts)
        if self._projection is None:
            rng = np.random.default_rng([self._seed, residuals.shape[1]])
            drawn = rng.standard_normal((residuals.shape[1], self.features - 1), dtype=np.float32)
            self._projection = drawn / np.float32(np.sqrt(residuals.shape[1]))
        h = np.ones((len(maps), self.features))
        h[:, 1:] = np.maximum(residuals @ self._projection, 0.0)
        return h

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        h = self.features_of(train)
        self.means.add(h.mean(axis=0))
        self._gram += ((h.T @ h) / len(h))[self._triangle]
        self._solved = None
        log = LearnLog(samples=len(train), flops=self.reference.response_flops(len(train)), notes=self.means.notes)
        # P r, h h' and the means; a multiplication and an addition each.
        log.flops += 2.0 * len(h) * self.features * (int(self.reference.live.sum()) + self.features + 1)
        return log

    def _weights(self) -> np.ndarray:
        """W / v, (M, rows of means)."""
        if self._solved is None:
            gram = np.zeros((self.features, self.features))
            gram[self._triangle] = self._gram / self.classes
            gram += np.triu(gram, 1).T
            target = self.means.rows.astype(np.float64).T / self.classes
            weights = np.linalg.solve(gram + STRENGTH * np.trace(gram) / len(gram) * np.eye(len(gram)), target)
            # Mean of (target - w h)² over lumisections, for each output; the mean of the target's square is 1/K.
            error = 1 / self.classes - 2 * np.einsum("fr,fr->r", weights, target)
            error += np.einsum("fr,fr->r", weights, gram @ weights)
            self._solved = weights / max(float(error.mean()), np.finfo(np.float32).tiny)
        return self._solved

    def _scores(self, maps: Maps) -> np.ndarray:
        return np.asarray((self.features_of(maps) @ self._weights())[:, self.means.row_of_class])

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to)} | self._reference_state()
        return state | {"gram": self._gram.copy()} | prefixed("means", self.means.state()) if self.classes else state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        known = bool(set(state) - {STAMP})
        self._restore_reference(state, known)
        self._projection = None
        self._clear()
        if known:
            if "gram" not in state or state["gram"].shape != self._gram.shape:
                raise StateError(f"the state of {self.name} lacks its gram matrix, or it is of another size; it is damaged")
            self._gram = np.array(state["gram"])
            self.means.restore(within(state, "means"), self.features)

    def memory_bytes(self) -> int:
        return self.means.memory_bytes() + (self._gram.nbytes if self.classes else 0)

    def state_bytes(self) -> int:
        """Bytes of the reference and of the random matrix, which is not saved but drawn again from the seed."""
        channels = int(self.reference.live.sum()) if self.classes else 0
        return self._reference_bytes() + np.dtype(np.float32).itemsize * channels * (self.features - 1)
