"""What the law of the response misses: a change of each channel's residual with pileup that all runs share.

    m_c(x) = β_c1 x + β_c2 x²,    x = log pileup relative to the reference run

Least squares over the train lumisections of all runs, each run about its own mean (a mean belongs to its gains), shrunk towards
0 by the share of β that is noise. Sums are kept, no lumisections.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError

_ARRAYS = ("moments", "onto", "squares", "lumisections", "span")

_LEAST_VARIANCE = np.array([1e-3, 1e-5])
"""Variances of x and x² within the runs below which their coefficients stay 0."""


class PileupError:
    """Sums of all runs, and the curve that follows from them."""

    def __init__(self) -> None:
        self._moments, self._onto = np.zeros((2, 2)), np.zeros((2, 0), dtype=np.float32)
        self._squares = np.zeros(0, dtype=np.float32)
        self._lumisections = 0
        self._span = np.array([np.inf, -np.inf])
        self._curve: np.ndarray | None = None

    def _features(self, log_pileup: np.ndarray) -> np.ndarray:
        """x and x², (n, 2); outside the fitted range those of its edge."""
        x = np.clip(log_pileup, *self._span)
        return np.stack([x, x * x], axis=1)

    def learn(self, log_pileup: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Add a run: x (n,), residuals about their mean (n, live). Returns the residuals without the curve, as known now."""
        if not self._onto.size:
            self._onto = np.zeros((2, residual.shape[1]), dtype=np.float32)
            self._squares = np.zeros(residual.shape[1], dtype=np.float32)
        self._span = np.array([min(self._span[0], log_pileup.min()), max(self._span[1], log_pileup.max())])
        features = self._features(log_pileup)
        features -= features.mean(axis=0)
        self._moments += features.T @ features
        self._onto += (features.T @ residual).astype(np.float32)
        self._squares += (residual**2).sum(axis=0).astype(np.float32)
        self._lumisections += len(residual)
        self._curve = None
        return residual - features @ self._beta()

    def _beta(self) -> np.ndarray:
        """β, (2, live)."""
        if self._curve is None:
            self._curve = np.zeros(self._onto.shape)
            seen = np.flatnonzero(np.diag(self._moments) > _LEAST_VARIANCE * self._lumisections)
            if seen.size:
                inverse = np.linalg.pinv(self._moments[np.ix_(seen, seen)], hermitian=True)
                beta = inverse @ self._onto[seen]
                left = np.maximum(self._squares - np.einsum("fc,fc->c", beta, self._onto[seen]), 0.0) / self._lumisections
                noise = np.diag(inverse) * left.mean()
                square = np.maximum((beta**2).mean(axis=1), np.finfo(np.float64).tiny)
                self._curve[seen] = beta * np.maximum(1 - noise / square, 0.0)[:, None]
        return self._curve

    def mean(self, log_pileup: np.ndarray) -> np.ndarray:
        """Mean of x and x² over a run: (2,)."""
        return np.asarray(self._features(log_pileup).mean(axis=0))

    def expected(self, log_pileup: np.ndarray) -> np.ndarray:
        """The curve at x: (n, live)."""
        return np.asarray(self._features(log_pileup) @ self._beta())

    def at_mean(self, mean: np.ndarray) -> np.ndarray:
        """The curve's mean over a run (`mean`), which is part of the run's gains: (live,)."""
        return np.asarray(mean @ self._beta())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state().values())

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        values: tuple[np.ndarray, ...] = (self._moments, self._onto, self._squares, np.array(self._lumisections), self._span)
        return {name: value.copy() for name, value in zip(_ARRAYS, values, strict=True)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if an array is missing."""
        missing = [name for name in _ARRAYS if name not in state]
        if missing:
            raise StateError(f"the state lacks {', '.join(missing)} of the response's error; it is damaged")
        self._moments, self._onto, self._squares, lumisections, self._span = (np.array(state[name]) for name in _ARRAYS)
        self._lumisections, self._curve = int(lumisections), None
