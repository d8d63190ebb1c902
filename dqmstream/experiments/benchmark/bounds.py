"""Two bounds on a benchmark's accuracy, from the true parameters of the simulated runs.

`ideal` knows the true map of every run, and the events and pileup of the lumisection. The score of run k is its exact
log-likelihood, without terms that all runs share:

    log L_k = sum_c x_c log p_kc + (N - x_c) log(1 - p_kc),    p_kc = 1 - (1 + R rate_kc / K)^-K

`ideal_profiled` knows the maps only, as a learner could at best: events N and pileup R are fitted for each lumisection and run,
and the score is the maximum over N and R (Barndorff-Nielsen and Cox, *Inference and Asymptotics*, 1994, sec. 3.4).

What moves in a run (noisy boxes, ring modes, patterns) is integrated out on a grid, and drop-outs and trips are summed over;
the bounds know the law of each run, not what happened in it (`dqmstream.experiments.benchmark.run_likelihood`). The score is
exact for one lumisection whose neighbours are unknown. A sum over lumisections is the exact score of all of them where they are
independent given the run: in `null`, `moderate`, `small`, `structured`, `year`, `pair`, `campaign`, `overdispersed` and
`threshold`. In `patterns`, `transient` and `mixture` drop-outs, trips, bumps and travelling waves persist, so a classifier that
looks at neighbours together can be above the sum. In `tracks` the bounds leave faults out.

No classifier of single lumisections is better than `ideal` on average (Bayes' rule with equal priors). `ideal_profiled` shows
what remains if luminosity has to be estimated from the map. It is not a strict bound, since a learner may know how N and R
usually change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from dqmstream.experiments.benchmark.run_likelihood import RunLikelihood, RunTruth
from dqmstream.experiments.simulator import K

IDEAL, IDEAL_PROFILED = "ideal", "ideal_profiled"
BOUNDS = (IDEAL, IDEAL_PROFILED)

_STEPS = 40
_TOLERANCE = 3e-3
"""A fit ends when N and R change by less than this, in units of their standard deviations. The log-likelihood is then exact to
about the square of it, far less than the difference between two runs."""


def ideal(counts: np.ndarray, events: np.ndarray, pileup: np.ndarray, truths: Sequence[RunTruth]) -> np.ndarray:
    """Log-likelihood of each run, float64 (n, runs), from counts of the live channels (n, live), events and pileup (n,).

    A constant is left out, the same in all columns of a row. -inf if a dead channel counts.
    """
    return np.stack([RunLikelihood(counts, truth).value(events, pileup) for truth in truths], axis=1)


def ideal_profiled(counts: np.ndarray, truths: Sequence[RunTruth]) -> np.ndarray:
    """As `ideal`, with the events and pileup that fit each run best: counts (n, live) to float64 (n, runs)."""
    scores = np.empty((len(counts), len(truths)))
    mean = RunTruth(np.mean([truth.rate for truth in truths], axis=0))
    shared = fit_conditions(counts, mean)  # within a few per mille of the fit of each run
    for k, truth in enumerate(truths):
        likelihood = RunLikelihood(counts, truth)
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
    likelihood = RunLikelihood(counts, truth)
    events, pileup = _rough_conditions(counts, truth.rate) if start is None else (start[0].copy(), start[1].copy())
    least = counts.max(axis=1).astype(np.float64)
    events[least == 0] = 0.0  # an empty lumisection has no events under any run
    open_ = np.flatnonzero(least)
    value = likelihood.value(events, pileup) + _choices(counts, events)
    for _ in range(_STEPS):
        if not open_.size:
            return events, pileup
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
    raise ArithmeticError(f"events and pileup of {open_.size} lumisections did not converge in {_STEPS} steps")


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
