"""Fit of the shared response: one weighted regression of both runs for each channel.

f and h (`experiments.compare.shared_response`) are fitted together, so the error of h includes the uncertainty of f.

Weights are 1/variance: if events are known beta-binomial, N p (1 - p) (1 + (N - 1) rho), with rho from the squared residuals
(Williams, Appl. Statist. 31 (1982) 144); else proportional to E. The error of h does not rely on them: it sums the residuals of
each block of consecutive lumisections before it squares (Liang and Zeger, Biometrika 73 (1986) 13), so it holds for correlated
neighbours and for noise beyond the binomial.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dqmstream.experiments.compare.luminosity import LuminosityRuler
from dqmstream.experiments.compare.samples import Sample
from dqmstream.experiments.compare.shared_response import MIN_EXPOSURE, SharedResponse, basis, beta_binomial

DEGREE = 4
"""Of f in the ratio. It follows the measured response within 3e-5 for pileup from 3 to 7 (degree 2: 3e-3)."""

MIN_RATIO_RANGE = 5e-3
"""A ratio that moves by less than this over both runs is noise, from which no slope can be fitted."""

BLOCK_LUMISECTIONS = 10
"""Lumisections in a block at least (times 25 if rows were interpolated), unless the run is short."""

MIN_BLOCKS, MAX_BLOCKS = 10, 50
"""Blocks of a run. Blocks of a short run hold fewer lumisections; those of a long run more, so that slow drifts stay inside."""

_STEPS = 15
_RIDGE = 1e-10
"""Added to the diagonal of the normal equations, relative to it: without shared conditions h is hardly determined beside f."""

_MIN_SPREAD = 1e-3
"""Variance over mean that a channel has at least if events are unknown."""


def fit_response(a: Sample, b: Sample, ruler: LuminosityRuler, low: float, high: float) -> SharedResponse:
    """Fit all channels to both runs. low, high: range of the ratio; a lumisection outside is taken at the nearer end."""
    fit = _Fit(a, b, ruler, low, high)
    fit.solve()
    fit.weigh()
    fit.solve()
    return fit.response()


class _RunTerms:
    """A run in the fit: exposure, basis of the ratio, products of the basis, block of each lumisection."""

    def __init__(self, sample: Sample, ruler: LuminosityRuler, low: float, high: float, sign: int, first_block: int) -> None:
        self.sample, self.sign = sample, sign
        self.exposure, ratio = ruler.exposure_and_ratio(sample)
        self.basis = basis(ratio, low, high, DEGREE + 1 if high - low > MIN_RATIO_RANGE else 1)
        self.upper = np.triu_indices(self.basis.shape[1])
        self.products = self.basis[:, self.upper[0]] * self.basis[:, self.upper[1]]
        span = sample.lumisection[-1] - sample.lumisection[0] + 1
        shortest = min(BLOCK_LUMISECTIONS * sample.scale, max(int(span) // MIN_BLOCKS, 1))
        length = max(shortest, -(-span // MAX_BLOCKS))
        _, block = np.unique((sample.lumisection - sample.lumisection[0]) // length, return_inverse=True)
        self.block = first_block + block


class _Fit:
    """The regression of both runs, step by step."""

    def __init__(self, a: Sample, b: Sample, ruler: LuminosityRuler, low: float, high: float) -> None:
        self._ruler, self._range = ruler, (low, high)
        first = _RunTerms(a, ruler, low, high, -1, 0)
        self._sides = (first, _RunTerms(b, ruler, low, high, 1, int(first.block[-1]) + 1))
        channels, terms = a.counts.shape[1], first.basis.shape[1]
        self._weights = np.zeros((terms, channels))
        self._h = np.zeros(channels)
        self._rho, self._spread = np.zeros(channels), np.ones(channels)
        counts = sum(side.sample.totals() for side in self._sides)
        # Half an event keeps p off 0 and 1 for a channel that counts in no event, or in every one.
        self._share = (counts + 0.5) / (sum(side.exposure.sum() for side in self._sides) + 1)
        self._weighted = False

    def solve(self) -> None:
        """Fit f and h with the variances of the last fit; the first time with variances proportional to E.

        mu is bilinear in f and h, so one pass over the counts gives the moments of the normal equations for all Gauss-Newton
        steps.
        """
        self._moments = [self._side_moments(side) for side in self._sides]
        (s_a, t_a), (s_b, t_b) = self._moments
        weights = np.linalg.solve(_ridged(s_a + s_b), (t_a + t_b)[..., None])[..., 0]
        h = np.zeros_like(self._h)
        for _ in range(_STEPS):
            normal, gradient = self._normal(weights, h)
            step = np.linalg.solve(_ridged(normal), gradient[..., None])[..., 0]
            weights = weights + step[:, :-1]
            h = np.clip(h + step[:, -1], -1.0, 1.0)
        self._weights, self._h = weights.T, h

    def weigh(self) -> None:
        """Estimate the dispersion of each channel from the squared residuals of the last fit."""
        squares, sizes, used, counts_events = np.zeros_like(self._h), 0.0, 0, self._ruler.counts_events
        for side in self._sides:
            for rows, counts in side.sample.parts():
                exposure = side.exposure[rows]
                middle = self._middle(side, rows)
                residual = counts - middle * (1 + side.sign * self._h)
                least = np.maximum(exposure, MIN_EXPOSURE)[:, None]
                plain = beta_binomial(middle, exposure, self._share, 0.0) if counts_events else least
                squares += (residual**2 / plain).sum(axis=0)
                sizes += float((exposure - 1).sum())
                used += len(counts)
        dof = used - len(self._weights) - 1
        if counts_events:
            self._rho = np.maximum((squares - dof) / max(sizes, 1.0), 0.0)
        else:
            self._spread = np.maximum(squares / dof, _MIN_SPREAD * self._share)
        self._weighted = True

    def response(self) -> SharedResponse:
        """The result of the fit, with the contribution of each block of lumisections to h."""
        normal, _ = self._normal(self._weights.T, self._h)
        unit = np.zeros((*self._h.shape, len(self._weights) + 1, 1))
        unit[:, -1] = 1.0
        row = np.linalg.solve(_ridged(normal), unit)[..., 0]  # of the inverse: h's covariance with all parameters
        blocks = int(self._sides[1].block[-1]) + 1
        influence = np.zeros((blocks, len(self._h)))
        for side in self._sides:
            factor = 1 + side.sign * self._h
            for rows, counts in side.sample.parts():
                exposure = side.exposure[rows]
                middle = self._middle(side, rows)
                slope = exposure[:, None] * (side.basis[rows] @ row[:, :-1].T) * factor + side.sign * middle * row[:, -1]
                added = slope * (counts - middle * factor) / self._variance(middle, exposure)
                block = side.block[rows]  # ascending
                first = np.flatnonzero(np.diff(block, prepend=-1))
                influence[block[first]] += np.add.reduceat(added, first)
        dof = self._corrected(influence)
        low, high = self._range
        return SharedResponse(
            self._ruler, low, high, self._weights, self._h, self._share, self._rho, self._spread,
            influence, dof,
            np.sqrt(np.maximum(row[:, -1], np.finfo(float).tiny)),
        )  # fmt: skip

    def _corrected(self, influence: np.ndarray) -> int:
        """Enlarge the influence, (blocks, live), in place for the fitted parameters, and return its degrees of freedom.

        Each run loses the parameters that it determines: the trace of its part of the normal matrix over the whole one. A short
        run beside a long one has few blocks, and they alone determine h. The degrees of freedom are Satterthwaite's (Biometrics
        Bull. 2 (1946) 110), the median over channels.
        """
        whole, first = _ridged(self._normal(self._weights.T, self._h)[0]), int(self._sides[1].block[0])
        total, shares = np.zeros_like(self._h), np.zeros_like(self._h)
        for number, rows in enumerate((slice(0, first), slice(first, None))):
            blocks = len(influence[rows])
            mine = self._normal(self._weights.T, self._h, (number,))[0]
            taken = np.trace(np.linalg.solve(whole, mine), axis1=1, axis2=2)
            left = np.maximum(blocks - taken, 1.0)
            influence[rows] *= np.sqrt(blocks / left)
            variance = (influence[rows] ** 2).sum(axis=0)
            total += variance
            shares += variance**2 / left
        worth = np.divide(total**2, shares, out=np.ones_like(total), where=shares > 0)
        return max(round(float(np.median(worth))), 1)

    def _middle(self, side: _RunTerms, rows: slice) -> np.ndarray:
        return side.exposure[rows, None] * (side.basis[rows] @ self._weights)

    def _variance(self, middle: np.ndarray, exposure: np.ndarray) -> np.ndarray:
        if not self._weighted or not self._ruler.counts_events:
            return np.maximum(exposure, MIN_EXPOSURE)[:, None] * self._spread
        return beta_binomial(middle, exposure, self._share, self._rho)

    def _side_moments(self, side: _RunTerms) -> tuple[np.ndarray, np.ndarray]:
        """sum E² F Fᵀ / v, (live, basis, basis), and sum E F x / v, (live, basis)."""
        terms = side.basis.shape[1]
        packed, target = np.zeros((len(self._h), side.products.shape[1])), np.zeros((len(self._h), terms))
        for rows, counts in side.sample.parts():
            exposure = side.exposure[rows]
            inverse = 1 / self._variance(self._middle(side, rows), exposure)
            packed += inverse.T @ (exposure[:, None] ** 2 * side.products[rows])
            target += (inverse * counts).T @ (exposure[:, None] * side.basis[rows])
        square = np.empty((len(self._h), terms, terms))
        square[:, side.upper[0], side.upper[1]] = packed
        square[:, side.upper[1], side.upper[0]] = packed
        return square, target

    def _normal(self, weights: np.ndarray, h: np.ndarray, runs: Sequence[int] = (0, 1)) -> tuple[np.ndarray, np.ndarray]:
        """Normal matrix (live, p, p) and gradient (live, p) in (f's weights, h) at weights (live, basis) and h (live,)."""
        terms = weights.shape[1]
        normal, gradient = np.zeros((len(h), terms + 1, terms + 1)), np.zeros((len(h), terms + 1))
        for run in runs:
            side, (square, target) = self._sides[run], self._moments[run]
            factor = (1 + side.sign * h)[:, None]
            level = np.einsum("cij,cj->ci", square, weights)
            residual = target - factor * level
            normal[:, :-1, :-1] += factor[..., None] ** 2 * square
            normal[:, :-1, -1] += side.sign * factor * level
            normal[:, -1, -1] += (weights * level).sum(axis=1)
            gradient[:, :-1] += factor * residual
            gradient[:, -1] += side.sign * (weights * residual).sum(axis=1)
        normal[:, -1, :-1] = normal[:, :-1, -1]
        return normal, gradient


def _ridged(matrices: np.ndarray) -> np.ndarray:
    """Symmetric matrices (m, p, p) with a little more on their diagonals."""
    out = matrices.copy()
    diagonal = np.arange(matrices.shape[1])
    out[:, diagonal, diagonal] *= 1 + _RIDGE
    out[:, diagonal, diagonal] += np.finfo(float).tiny
    return out
