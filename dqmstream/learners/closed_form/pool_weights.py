"""Weights of several densities in one log-linear pool, chosen by the likelihood of held-out lumisections.

    log p(k | x) = log softmax_k sum_i w_i s_i(x, k),    w_i >= 0

The likelihood of the held-out lumisections is concave in w, so there is one maximum. It is always adopted; a weak prior decides
where few lumisections say nothing. Classes have equal weights. The errors of the weights count lumisections of the same run as
dependent (the sandwich estimator, with runs as clusters: Liang and Zeger, Biometrika 73 (1986) 13).
Source: stacking (Wolpert, Neural Networks 5 (1992) 241); logarithmic pools (Genest and Zidek, Stat. Sci. 1 (1986) 114).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from dqmstream.errors import StateError

PRIOR_SPREAD = 0.5
"""Standard deviation of the prior of a weight."""

CORRELATED = 4.0
"""Held-out lumisections that count as one against the prior: neighbours share what the densities miss."""


@dataclass(frozen=True, eq=False)
class PoolWeights:
    """Weights of the named parts, and what is known of them.

    weights, errors: (parts,); an error is 0 where the weight is 0, or nothing was held out. log_likelihood: mean over the
    held-out lumisections, nan where there are none.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    errors: np.ndarray
    log_likelihood: float = np.nan

    def of(self, names: Sequence[str]) -> PoolWeights:
        """The weights of some of the parts."""
        place = [self.names.index(name) for name in names]
        return PoolWeights(tuple(names), self.weights[place], self.errors[place], self.log_likelihood)

    def with_part(self, name: str) -> PoolWeights:
        """The weights with another part, which has none."""
        return PoolWeights((*self.names, name), np.append(self.weights, 0.0), np.append(self.errors, 0.0), self.log_likelihood)

    def notes(self) -> dict[str, float | list[float]]:
        """Figures for the history."""
        notes: dict[str, float | list[float]] = {}
        for name, weight, error in zip(self.names, self.weights, self.errors, strict=True):
            notes |= {f"weight_{name}": float(weight), f"weight_error_{name}": float(error)}
        if np.isfinite(self.log_likelihood):
            notes["held_out_log_likelihood"] = self.log_likelihood
        return notes

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        names = np.frombuffer(" ".join(self.names).encode(), dtype=np.uint8)
        return {
            "names": names.copy(), "weights": self.weights.copy(), "errors": self.errors.copy(),
            "log_likelihood": np.array(self.log_likelihood),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> PoolWeights:
        """The weights that `state` gave. Raises StateError if an array is missing."""
        missing = [name for name in ("names", "weights", "errors", "log_likelihood") if name not in state]
        if missing:
            raise StateError(
                f"the weights of the pool lack {', '.join(missing)}; the state is damaged or of an earlier version"
            )
        names = tuple(np.asarray(state["names"], dtype=np.uint8).tobytes().decode().split())
        return cls(names, np.array(state["weights"]), np.array(state["errors"]), float(state["log_likelihood"]))


def fit_weights(names: Sequence[str], scores: np.ndarray, label: np.ndarray, usual: np.ndarray) -> PoolWeights:
    """Choose the weights.

    scores: log-probabilities of the classes by each part, (parts, n, classes). label: class of each lumisection, (n,), two
    classes at least. usual: weights before anything is held out, (parts,).
    """
    place = np.arange(len(label)), label
    sizes = np.bincount(label, minlength=scores.shape[2])
    share = 1 / (np.count_nonzero(sizes) * sizes[label])
    right = scores[:, place[0], place[1]]
    strength = CORRELATED / (len(label) * PRIOR_SPREAD**2)

    def surprise(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.tensordot(weights, scores, 1), axis=1)
        away = weights - usual
        gradient = _pulls(np.exp(log_p), scores, right) @ share
        return float(-(log_p[place] @ share) + 0.5 * strength * away @ away), -gradient + strength * away

    found = minimize(surprise, usual, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(usual), options={"ftol": 1e-10})
    weights = np.maximum(found.x, 0.0)
    log_p = log_softmax(np.tensordot(weights, scores, 1), axis=1)
    errors = _errors(weights, np.exp(log_p), scores, right, share, label)
    return PoolWeights(tuple(names), weights, errors, float(log_p[place] @ share))


def _pulls(p: np.ndarray, scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Derivative of the log-likelihood of each lumisection by the weights: (parts, n)."""
    return right - np.einsum("pnk,nk->pn", scores, p)


def _errors(
    weights: np.ndarray, p: np.ndarray, scores: np.ndarray, right: np.ndarray, share: np.ndarray, label: np.ndarray
) -> np.ndarray:
    free = np.flatnonzero(weights > 0)
    errors = np.zeros(len(weights))
    if not free.size:
        return errors
    mean = np.einsum("pnk,nk->pn", scores[free], p)
    weighted = scores[free] * (p * share[:, None])
    curvature = np.einsum("pnk,qnk->pq", weighted, scores[free]) - (mean * share) @ mean.T
    pulls = _pulls(p, scores[free], right[free]) * share
    of_run = np.stack([np.bincount(label, pull, minlength=scores.shape[2]) for pull in pulls])
    inverse = np.linalg.pinv(curvature, hermitian=True)
    errors[free] = np.sqrt(np.maximum(np.diag(inverse @ of_run @ of_run.T @ inverse), 0.0))
    return errors


def mean_gain(scores: np.ndarray, label: np.ndarray, weights: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Mean rise of the log-likelihood by weights over other weights, and its standard error with runs as clusters.

    scores, label: as in `fit_weights`. Classes have equal weights.
    """
    place = np.arange(len(label)), label
    one, other = (log_softmax(np.tensordot(w, scores, 1), axis=1)[place] for w in (weights, others))
    sizes = np.bincount(label)
    of_run = np.bincount(label, one - other)[sizes > 0] / sizes[sizes > 0]
    return float(of_run.mean()), float(of_run.std(ddof=1) / np.sqrt(len(of_run))) if len(of_run) > 1 else np.inf
