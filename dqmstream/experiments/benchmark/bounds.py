"""Two bounds on a benchmark's accuracy, from the true parameters of the simulated runs.

`ideal` knows the true map of every run, and the events and pileup of the lumisection. The score of run k is its exact
log-likelihood, without terms that all runs share:

    log L_k = sum_c x_c log p_kc + (N - x_c) log(1 - p_kc),    p_kc = 1 - (1 + R rate_kc / K)^-K

`ideal_profiled` knows the maps only, as a learner could at best: events N and pileup R are fitted for each lumisection and run,
and the score is the maximum over N and R (Barndorff-Nielsen and Cox, *Inference and Asymptotics*, 1994, sec. 3.4).

If readout boxes of a run have common-mode noise, both integrate it out: the likelihood of such a box is the mean over its gain
f ~ Normal(1, sigma), on a grid; boxes are independent. The bounds know which boxes are noisy.

No classifier is better than `ideal` on average (Bayes' rule with equal priors). `ideal_profiled` shows what remains if
luminosity has to be estimated from the map. It is not a strict bound, since a learner may know how N and R usually change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp, psi, xlogy

from dqmstream.experiments.simulator import LIVE, K, SimulatedRun
from dqmstream.lumisection import rbx_mask

IDEAL, IDEAL_PROFILED = "ideal", "ideal_profiled"
BOUNDS = (IDEAL, IDEAL_PROFILED)

_GRID_SIGMAS = np.linspace(-4.5, 4.5, 41)
"""Grid of the gain of a noisy box, in sigma. The counts of a box determine its gain to about a quarter of sigma, so steps of
.225 are not wider than the likelihood."""

_STEPS = 40
_TOLERANCE = 3e-3
"""A fit ends when N and R change by less than this, in units of their standard deviations. The log-likelihood is then exact to
about the square of it, far less than the difference between two runs."""


@dataclass(frozen=True, eq=False)
class RunTruth:
    """True parameters of a run. rate: of the live channels, (live,). boxes: indices of the channels of each noisy box."""

    rate: np.ndarray
    boxes: tuple[np.ndarray, ...]
    sigma: float

    @classmethod
    def of(cls, run: SimulatedRun) -> RunTruth:
        noisy = run.truth["common_mode"]
        boxes = tuple(np.flatnonzero(rbx_mask(box["side"], box["n"])[LIVE]) for box in noisy)
        return cls(run.rate[LIVE], boxes, noisy[0]["sigma"] if noisy else 0.0)


def ideal(counts: np.ndarray, events: np.ndarray, pileup: np.ndarray, truths: Sequence[RunTruth]) -> np.ndarray:
    """Log-likelihood of each run, float64 (n, runs), from counts of the live channels (n, live), events and pileup (n,).

    A constant is left out, the same in all columns of a row. -inf if a dead channel counts.
    """
    return np.stack([_Likelihood(counts, truth).value(events, pileup) for truth in truths], axis=1)


def ideal_profiled(counts: np.ndarray, truths: Sequence[RunTruth]) -> np.ndarray:
    """As `ideal`, with the events and pileup that fit each run best: counts (n, live) to float64 (n, runs)."""
    scores = np.empty((len(counts), len(truths)))
    mean = RunTruth(np.mean([truth.rate for truth in truths], axis=0), (), 0.0)
    shared = fit_conditions(counts, mean)  # within a few per mille of the fit of each run
    for k, truth in enumerate(truths):
        likelihood = _Likelihood(counts, truth)
        events, pileup = fit_conditions(counts, truth, shared)
        scores[:, k] = likelihood.value(events, pileup) + _choices(counts, events)
    return scores


def fit_conditions(
    counts: np.ndarray, truth: RunTruth, start: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Events and pileup, (n,) each, that maximise the likelihood of counts (n, live) in a run; events is a real number.

    Newton's method with the expected curvature in R and the observed one in N. N stays at or above the largest count; a step
    that does not increase the likelihood is shortened. start: initial values. Raises ArithmeticError if it does not converge.
    """
    likelihood = _Likelihood(counts, truth)
    events, pileup = _rough_conditions(counts, truth.rate) if start is None else (start[0].copy(), start[1].copy())
    least = counts.max(axis=1).astype(np.float64)
    open_ = np.arange(len(counts))
    value = likelihood.value(events, pileup) + _choices(counts, events)
    for _ in range(_STEPS):
        step, scale = likelihood.step(open_, events[open_], pileup[open_], least[open_])
        now = value[open_]
        best = np.stack([events[open_], pileup[open_]])
        for factor in (1.0, 0.5, 0.25, 0.1, 0.02):
            tried_events = np.maximum(events[open_] + factor * step[0], least[open_])
            tried_pileup = np.maximum(pileup[open_] + factor * step[1], 0.2 * pileup[open_])
            tried = likelihood.value(tried_events, tried_pileup, open_) + _choices(counts[open_], tried_events)
            better = tried > now
            best = np.where(better, [tried_events, tried_pileup], best)
            now = np.where(better, tried, now)
            if better.all():
                break
        moved = np.abs(best - [events[open_], pileup[open_]]) / scale
        events[open_], pileup[open_], value[open_] = best[0], best[1], now
        open_ = open_[(moved > _TOLERANCE).any(axis=0)]
        if not open_.size:
            return events, pileup
    raise ArithmeticError(f"events and pileup of {open_.size} lumisections did not converge in {_STEPS} steps")


class _Likelihood:
    """Log-likelihood of counts in a run as a function of events and pileup, without the binomial coefficients."""

    def __init__(self, counts: np.ndarray, truth: RunTruth) -> None:
        self._counts = counts.astype(np.float64)
        self._truth = truth
        self._quiet = np.ones(counts.shape[1], dtype=bool)
        for box in truth.boxes:
            self._quiet[box] = False
        self._gains = 1 + truth.sigma * _GRID_SIGMAS
        self._log_weights = -0.5 * _GRID_SIGMAS**2
        self._log_weights -= logsumexp(self._log_weights)

    def value(self, events: np.ndarray, pileup: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """log L of the given rows (all by default), float64 (m,), for their events and pileup (m,)."""
        counts = self._counts if rows is None else self._counts[rows]
        events, pileup = events[:, None], pileup[:, None]
        log_l = _log_likelihood(counts[:, self._quiet], events, pileup, self._truth.rate[self._quiet]).sum(axis=1)
        for box in self._truth.boxes:
            log_l += logsumexp(self._of_box(box, counts, events, pileup), axis=1)
        return np.asarray(log_l)

    def _of_box(self, box: np.ndarray, counts: np.ndarray, events: np.ndarray, pileup: np.ndarray) -> np.ndarray:
        """log(weight x likelihood) of a noisy box at each gain of the grid, (m, grid)."""
        at = [_log_likelihood(counts[:, box], events, pileup * gain, self._truth.rate[box]).sum(axis=1) for gain in self._gains]
        return np.stack(at, axis=1) + self._log_weights

    def step(
        self, rows: np.ndarray, events: np.ndarray, pileup: np.ndarray, least: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A Newton step in (events, pileup) and their standard deviations, both (2, m). least: lower limit of events, (m,).

        The gradient of an integrated box is the mean of its gradients over the posterior of the gain (Fisher's identity). It is
        evaluated at the posterior mean, which is sufficient since the counts of a box determine its gain well.
        """
        counts, lowest = self._counts[rows], events <= least
        events, pileup = events[:, None], pileup[:, None]
        gradient, information = _slopes(counts[:, self._quiet], events, pileup, self._truth.rate[self._quiet])
        for box in self._truth.boxes:
            log_posterior = self._of_box(box, counts, events, pileup)
            posterior = np.exp(log_posterior - logsumexp(log_posterior, axis=1, keepdims=True))
            gain = (posterior @ self._gains)[:, None]
            by_gain, curvature = _slopes(counts[:, box], events, pileup * gain, self._truth.rate[box])
            factor = np.stack([np.ones(len(rows)), gain[:, 0]])  # d/dR at R times gain
            gradient += factor * by_gain
            information += factor[:, None] * factor * curvature
        # d/dN of the binomial coefficients of all channels.
        gradient[0] += (psi(events + 1) - psi(events - counts + 1)).sum(axis=1)
        information[0, 0] = (_trigamma(events - counts + 1) - _trigamma(events + 1)).sum(axis=1)
        determinant = information[0, 0] * information[1, 1] - information[0, 1] ** 2
        # A matrix that is not positive definite is replaced by its diagonal. Where N is at its limit, only R changes.
        definite = determinant > 0.05 * information[0, 0] * information[1, 1]
        held = lowest & (gradient[0] < 0)
        gradient[0, held] = 0.0
        off = np.where(definite & ~held, information[0, 1], 0.0)
        determinant = information[0, 0] * information[1, 1] - off**2
        step = np.stack(
            [information[1, 1] * gradient[0] - off * gradient[1], information[0, 0] * gradient[1] - off * gradient[0]]
        )
        return step / determinant, 1 / np.sqrt(np.stack([information[0, 0], information[1, 1]]))


def _log_likelihood(counts: np.ndarray, events: np.ndarray, pileup: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """x log p + (N - x) log(1 - p) of each channel, (m, channels)."""
    log_q = -K * np.log1p(pileup * rate / K)
    return np.asarray(xlogy(counts, -np.expm1(log_q)) + (events - counts) * log_q)


def _slopes(counts: np.ndarray, events: np.ndarray, pileup: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (2, m) and information matrix (2, 2, m) of `_log_likelihood` in N and R, summed over channels."""
    grown = 1 + pileup * rate / K
    log_q = -K * np.log(grown)
    q, p = np.exp(log_q), -np.expm1(log_q)
    odds = np.divide(q, p, out=np.zeros_like(p), where=p > 0)
    slope = rate / grown  # -d log q / dR
    gradient = np.stack([log_q.sum(axis=1), ((counts * odds - (events - counts)) * slope).sum(axis=1)])
    rr = (events * odds * slope**2).sum(axis=1)
    nr = slope.sum(axis=1)
    return gradient, np.array([[np.zeros_like(rr), nr], [nr, rr]])


def _trigamma(z: np.ndarray) -> np.ndarray:
    """psi'(z) for z >= 1, within 1.5 %: sufficient for a curvature, and ten times as fast as the exact function."""
    return np.asarray((1 + (0.5 + 1 / (6 * z)) / z) / z)


def _choices(counts: np.ndarray, events: np.ndarray) -> np.ndarray:
    """log of the binomial coefficients without x!, which is the same for all N: (n,)."""
    return np.asarray((gammaln(events[:, None] + 1) - gammaln(events[:, None] - counts + 1)).sum(axis=1))


def _rough_conditions(counts: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A first guess, (n,) each: N a little above the largest count, R such that the total comes out."""
    events = counts.max(axis=1) + 1.0
    total = counts.sum(axis=1)
    low, high = np.full(len(counts), 1e-3), np.full(len(counts), 1e3)
    for _ in range(40):
        pileup = np.sqrt(low * high)
        above = events * (-np.expm1(-K * np.log1p(pileup[:, None] * rate / K))).sum(axis=1) > total
        low, high = np.where(above, low, pileup), np.where(above, pileup, high)
    return events, np.sqrt(low * high)
