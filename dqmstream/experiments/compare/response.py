"""How each channel responds in two runs under the same conditions: one regression of both, and by how much they differ in it.

With a lumisection's exposure E and ratio z (`experiments.compare.conditions`) the mean count of a channel is

    mu = E f(z) (1 - h) in run A,    mu = E f(z) (1 + h) in run B,

f a polynomial in z of the channel's own, fitted in both runs together with h by weighted least squares. The ratio of response
is (1 + h) / (1 - h); h = -1 is a channel that died, h = 1 one that woke. No run is compared with a response that was fitted
on another as if that were known: f and h come from one fit, and the error of h holds the uncertainty of f.

Weights are 1/variance: beta-binomial where events are known, N p (1 - p) (1 + (N - 1) rho) with rho from the squared
residuals (Williams, Appl. Statist. 31 (1982) 144), proportional to E else. The error of h does not trust them: it sums each
block of consecutive lumisections before it squares (Liang and Zeger, Biometrika 73 (1986) 13), so it holds for neighbours
that are alike and for noise that no binomial has. Its scatter from channel to channel is moderated as in Smyth, Stat. Appl.
Genet. Mol. Biol. 3 (2004) 3, sec. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.polynomial.legendre import legvander
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import f as f_distribution
from scipy.stats import t

from dqmstream.experiments.compare.conditions import Conditions, Sample

DEGREE = 4
"""Of the response in the ratio: off by 3e-5 at most on the measured response for pileup from 3 to 7 (a quadratic: 3e-3)."""

STEADY = 5e-3
"""A ratio that moves by less than this over both runs is noise, and teaches no slope."""

BLOCK = 10
"""Fewest lumisections whose residuals are summed before they are squared (times 25 where rows were interpolated)."""

LEAST_BLOCKS = 10
"""Of a run: blocks of a short one hold fewer lumisections."""

BLOCKS_A_RUN = 50
"""Blocks are longer where a run would have more of them than this: what moves slowly stays inside one."""

OWN_VARIANCE_P = 1e-3
"""A channel noisier than chance explains at this level keeps its own variance: it flickers, and the others do not."""

_ALIKE = 1e-8
"""Variance of log s² over what chance gives below which all vary alike."""

_STEPS = 15
_RIDGE = 1e-10
"""Of the normal equations, relative to their diagonal: where conditions do not overlap, h is hardly determined beside f."""

_LEAST_EXPOSURE = 1e-3
"""In variances where events are unknown (a mean lumisection has 1): the bright rings may be dark where others count."""

_LEAST_SPREAD = 1e-3
"""Variance over mean that a channel has at least where events are unknown."""

_SUREST = 0.25
"""Part of its variance by the model that h has at least, however little its blocks differ."""

_NEAREST = 0.3
"""In variances p and 1 - p are never less than this share of their means in both runs: where a channel fires in nearly every
event a fit puts 1 - p anywhere near 0, and a lumisection would weigh a thousand times too much by chance."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Half differences h of m channels or readout boxes, their standard errors and degrees of freedom: float64, (m,)."""

    h: np.ndarray
    error: np.ndarray
    dof: np.ndarray

    @property
    def pull(self) -> np.ndarray:
        return self.h / self.error

    @property
    def p(self) -> np.ndarray:
        """Two-sided probability of such a pull if nothing changed, by Student's t."""
        return np.asarray(2 * t.sf(np.abs(self.pull), self.dof))


@dataclass(frozen=True, eq=False)
class Response:
    """The fitted response. low, high: range of the ratio. weights: of f, (basis, live). h, rho: (live,).

    share: counts over E in both runs, (live,). spread: variance of a count over E where events are unknown, else 1, (live,).
    influence: what each block of lumisections added to h, (blocks, live), larger by what the fit has taken from its residuals;
    the sum of its squares is the variance of h. dof: of that sum. model_error: of h, if the weights told the truth, (live,).
    """

    conditions: Conditions
    low: float
    high: float
    weights: np.ndarray
    h: np.ndarray
    share: np.ndarray
    rho: np.ndarray
    spread: np.ndarray
    influence: np.ndarray
    dof: int
    model_error: np.ndarray

    def estimate(self, testable: np.ndarray) -> Estimate:
        """h of each channel with its moderated error, which is inf for channels that are not testable: bool, (live,)."""
        error, degrees = np.full_like(self.h, inf), np.ones_like(self.h)
        if testable.any():
            own = (self.influence[:, testable] ** 2).sum(axis=0)
            scale, degrees[testable] = moderate(own / self.model_error[testable] ** 2, self.dof)
            error[testable] = self.model_error[testable] * np.sqrt(np.maximum(scale, _SUREST))
        return Estimate(self.h, error, degrees)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """f at the lower and upper quarter of the ratio's range, (live,) each."""
        quarters = self.low + (self.high - self.low) * np.array([0.25, 0.75])
        low, high = _basis(quarters, self.low, self.high, len(self.weights)) @ self.weights
        return low, high

    def expected(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """E f(z), the mean of what runs A and B expect, and a count's variance there: float64, (n, live) each."""
        exposure, ratio = self.conditions.of(sample)
        middle = exposure[:, None] * (_basis(ratio, self.low, self.high, len(self.weights)) @ self.weights)
        if not self.conditions.counts_events:
            return middle, np.maximum(exposure, _LEAST_EXPOSURE)[:, None] * self.spread
        return middle, beta_binomial(middle, exposure, self.share, self.rho)


def beta_binomial(middle: np.ndarray, events: np.ndarray, share: np.ndarray, rho: np.ndarray | float) -> np.ndarray:
    """Variance N p (1 - p) (1 + (N - 1) rho) of counts with means middle, (n, live), in events (n,).

    share: mean of p, (live,), which keeps p and 1 - p off zero.
    """
    many = events[:, None]
    p = np.clip(middle / many, _NEAREST * share, 1 - _NEAREST * (1 - share))
    return np.asarray(many * p * (1 - p) * (1 + (many - 1) * rho))


def fit_response(a: Sample, b: Sample, conditions: Conditions, low: float, high: float) -> Response:
    """Fit all channels on both runs. low, high: range of the ratio; lumisections beyond it are taken at its ends."""
    fit = _Fit(a, b, conditions, low, high)
    fit.solve()
    fit.weigh()
    fit.solve()
    return fit.response()


class _Side:
    """A run in the fit: exposure, basis of the ratio, products of the basis, block of each lumisection."""

    def __init__(self, sample: Sample, conditions: Conditions, low: float, high: float, sign: int, first_block: int) -> None:
        self.sample, self.sign = sample, sign
        self.exposure, ratio = conditions.of(sample)
        self.basis = _basis(ratio, low, high, DEGREE + 1 if high - low > STEADY else 1)
        self.upper = np.triu_indices(self.basis.shape[1])
        self.products = self.basis[:, self.upper[0]] * self.basis[:, self.upper[1]]
        span = sample.lumisection[-1] - sample.lumisection[0] + 1
        shortest = min(BLOCK * sample.scale, max(int(span) // LEAST_BLOCKS, 1))
        length = max(shortest, -(-span // BLOCKS_A_RUN))
        _, block = np.unique((sample.lumisection - sample.lumisection[0]) // length, return_inverse=True)
        self.block = first_block + block


class _Fit:
    """The regression in the making."""

    def __init__(self, a: Sample, b: Sample, conditions: Conditions, low: float, high: float) -> None:
        self._conditions, self._range = conditions, (low, high)
        first = _Side(a, conditions, low, high, -1, 0)
        self._sides = (first, _Side(b, conditions, low, high, 1, int(first.block[-1]) + 1))
        channels, terms = a.counts.shape[1], first.basis.shape[1]
        self._weights = np.zeros((terms, channels))
        self._h = np.zeros(channels)
        self._rho, self._spread = np.zeros(channels), np.ones(channels)
        counts = sum(side.sample.totals() for side in self._sides)
        # A channel that counts in every event, or in none, is as likely to stop as half an event in all says.
        self._share = (counts + 0.5) / (sum(side.exposure.sum() for side in self._sides) + 1)
        self._weighted = False

    def solve(self) -> None:
        """Fit f and h to the counts with the variances that the last fit gave; with E alone the first time.

        Gauss-Newton on the normal equations' moments, which one pass over the counts gives: mu is bilinear in f and h.
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
        """Dispersion of each channel from the squared residuals of the last fit."""
        squares, sizes, used, counts_events = np.zeros_like(self._h), 0.0, 0, self._conditions.counts_events
        for side in self._sides:
            for rows, counts in side.sample.parts():
                exposure = side.exposure[rows]
                middle = self._middle(side, rows)
                residual = counts - middle * (1 + side.sign * self._h)
                least = np.maximum(exposure, _LEAST_EXPOSURE)[:, None]
                plain = beta_binomial(middle, exposure, self._share, 0.0) if counts_events else least
                squares += (residual**2 / plain).sum(axis=0)
                sizes += float((exposure - 1).sum())
                used += len(counts)
        dof = used - len(self._weights) - 1
        if counts_events:
            self._rho = np.maximum((squares - dof) / max(sizes, 1.0), 0.0)
        else:
            self._spread = np.maximum(squares / dof, _LEAST_SPREAD * self._share)
        self._weighted = True

    def response(self) -> Response:
        """The fit's result, with what each block of lumisections added to h."""
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
        return Response(
            self._conditions, low, high, self._weights, self._h, self._share, self._rho, self._spread,
            influence, dof,
            np.sqrt(np.maximum(row[:, -1], np.finfo(float).tiny)),
        )  # fmt: skip

    def _corrected(self, influence: np.ndarray) -> int:
        """Enlarge the influence (blocks, live) of each run by its share of the fit's parameters; its degrees of freedom.

        A run's share is the trace of its part of the normal matrix over the whole one: a short run beside a long one has few
        blocks, which determine h alone. Degrees of freedom are Satterthwaite's (Biometrics Bull. 2 (1946) 110), the median
        over channels.
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

    def _middle(self, side: _Side, rows: slice) -> np.ndarray:
        return side.exposure[rows, None] * (side.basis[rows] @ self._weights)

    def _variance(self, middle: np.ndarray, exposure: np.ndarray) -> np.ndarray:
        if not self._weighted or not self._conditions.counts_events:
            return np.maximum(exposure, _LEAST_EXPOSURE)[:, None] * self._spread
        return beta_binomial(middle, exposure, self._share, self._rho)

    def _side_moments(self, side: _Side) -> tuple[np.ndarray, np.ndarray]:
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


def moderate(scale: np.ndarray, dof: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances over what was expected of them, (m,), drawn towards what all have in common, and their degrees of freedom.

    If all vary by chance alone around one value they are that value; else each is
    (d0 s0² + d s²) / (d0 + d), with s0² and d0 from the mean and variance of log s² (Smyth 2004, sec. 6.2), without outliers.
    One that is larger than its prior allows at `OWN_VARIANCE_P` is left as it is, with d degrees of freedom (in the spirit of
    Phipson et al., Ann. Appl. Stat. 10 (2016) 946).
    """
    logs = np.log(np.maximum(scale, np.finfo(float).tiny)) - digamma(dof / 2) + np.log(dof / 2)
    middle = np.median(logs)
    near = np.abs(logs - middle) < 4 * 1.4826 * max(float(np.median(np.abs(logs - middle))), np.sqrt(polygamma(1, dof / 2)) / 2)
    mean = float(logs[near].mean())
    excess = float(logs[near].var(ddof=1) - polygamma(1, dof / 2)) if near.sum() > 1 else 0.0
    if excess <= _ALIKE:
        prior_dof, prior = inf, np.exp(mean)
        moderated, degrees = np.full_like(scale, prior), np.full(scale.shape, inf)
    else:
        prior_dof = 2 * brentq(lambda x: float(polygamma(1, x)) - excess, 1e-3, 1e9)
        prior = np.exp(mean + digamma(prior_dof / 2) - np.log(prior_dof / 2))
        moderated = (prior_dof * prior + dof * scale) / (prior_dof + dof)
        degrees = np.full(scale.shape, prior_dof + dof)
    own = f_distribution.sf(scale / prior, dof, min(prior_dof, 1e9)) < OWN_VARIANCE_P
    return np.where(own, scale, moderated), np.where(own, float(dof), degrees)


def _basis(ratio: np.ndarray, low: float, high: float, terms: int) -> np.ndarray:
    """Legendre polynomials of the ratio on low..high, (n, terms); beyond it the response is that of the end."""
    if terms == 1:
        return np.ones((len(ratio), 1))
    return legvander(np.clip(2 * (ratio - low) / (high - low) - 1, -1.0, 1.0), terms - 1)


def _ridged(matrices: np.ndarray) -> np.ndarray:
    """Symmetric matrices (m, p, p) with a little more on their diagonals."""
    out = matrices.copy()
    diagonal = np.arange(matrices.shape[1])
    out[:, diagonal, diagonal] *= 1 + _RIDGE
    out[:, diagonal, diagonal] += np.finfo(float).tiny
    return out
