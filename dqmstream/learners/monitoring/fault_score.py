"""Is there a fault in this lumisection, and in which channels? Counts against gains that are followed from run to run.

Under the conditions that a lumisection shows a channel of N events is to count N p, p = P(exp(g) R λ)
(`learners.response.response`).
g is its log-gain since the reference run, followed as a random walk (Kalman, J. Basic Eng. 82 (1960) 35): drift and ageing
are no fault. What can fail, and by how much, is a list (`ALONE`, `MODULE`, `BOX`); the evidence of a run's lumisections for
each of it adds up in `learners.monitoring.fault_filter`. The score is the logarithm of the odds that something has failed.

A blank lumisection (`learners.blank`) is no evidence: the odds go on as time alone moves them. In a truncated one deviations
are those of its few events.

While it looks at a run it goes on following the gains of channels that are good, by what lies before, and forgets that again:
what it knows changes by `learn` alone. A channel that jumps is not followed; it stays a fault until it comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from dqmstream.errors import InputError, StateError
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.fault_filter import FaultFilter, Groups, Likelihoods, Rates, Suspicion
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.response import SHAPE, medians, rate_of

ALONE = (0.0, 0.25, 0.4, 0.55, 0.7, 0.82, 2.0)
"""Factors on the rate of a channel that fails alone. Beside them stands a state of any count at all."""

MODULE = (0.0,)
BOX = (0.0, 0.82, 0.88, 0.94)

LASTING, SHORT = 0.01, 0.4
"""Probability that a fault ends in a lumisection; the state of any count is for what is short."""

BEGINS = 1e-5
"""Probability that a thing fails in a lumisection: that of a channel of HE once in 100 lumisections."""

RATES_ALONE = Rates((BEGINS / len(ALONE),) * len(ALONE) + (BEGINS,), (LASTING,) * len(ALONE) + (SHORT,))
RATES_MODULE = Rates((BEGINS / 10,), (LASTING,))
RATES_BOX = Rates((BEGINS / 4,) * len(BOX), (LASTING,) * len(BOX))

RELATIVE = 3e-4
"""The number of events is never known better than to this share."""

FEW = 10.0
"""Variance of a count below which the reference run does not tell by how much it scatters more than a count of events does."""

LEAST = 0.1
"""Least variance of a count, for full channels."""

_NEVER = 1e-6
"""Probability that a dead channel counts an event."""

DRIFT = 0.01
"""Deviation of a log-gain from run to run, until the runs have told it."""

UNKNOWN = 0.15
"""Deviation of a log-gain before the first run: channels that are full in it tell nothing of theirs."""

DRIFT_LEARNT = 0.3
"""Weight of the newest run in the drift."""

ROUNDS, FARTHEST = 2, 0.3
"""Steps in which events and pileup are moved to where the channels want them, and the largest share of a step."""

STEPS = 20
"""Lumisections that are looked at with the same gains."""

CLEAN = np.log(0.05)
"""Log-odds of a fault beyond which a channel's lumisection teaches nothing of its gain."""

JUMP = 4.0
"""Deviations beyond which a gain is not followed, and a count teaches nothing."""


class FaultScore:
    """The gains of the live channels of a reference, and what they make of lumisections."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._groups = Groups.of(reference.live)
        self.gain = np.zeros(reference.channels)
        self.variance = np.zeros(reference.channels)
        self.drift = DRIFT**2
        self.runs = 0

    def learn(self, maps: Maps) -> None:
        """Follow the gains by lumisections of the next run. What stands out in them is left out, a channel at a time."""
        counts = maps.counts[:, self.reference.live].astype(np.float64)
        counts = counts[~self.reference.blank(counts)]
        before = self.variance + (self.drift if self.runs else UNKNOWN**2)
        light = _Light.of(counts, self.reference, self.gain, before)
        change, error = self._change(counts, light, before, np.ones(counts.shape, dtype=bool))
        if self.runs:
            known = np.isfinite(error) & (error < np.median(error))
            spread = np.median(change[known] ** 2) / 0.4549 - np.median((error**2 + self.variance)[known]) if known.any() else 0
            self.drift += DRIFT_LEARNT * (max(float(spread), 1e-6) - self.drift)
        self.gain, self.variance = _updated(self.gain, before, change, error)
        self.runs += 1

    def set_reference(self, reference: Reference) -> None:
        """Use a newer version of the reference (`Reference.after`); gains are converted to its scale."""
        if reference is not self.reference:
            factor = self.reference.rescaled(reference)
            self.gain, self.variance, self.reference = self.gain * factor, self.variance * factor**2, reference

    def look(self, maps: Maps, apart: int = 1) -> Suspicion:
        """Log-odds of a fault for lumisections of one run, in their order, and for their channels.

        apart: runs between it and the last that was learnt; gains have drifted as often. A figure depends on its own
        lumisection and those before it. Raises InputError before the first run.
        """
        if not self.runs:
            raise InputError("no run is known yet: learn one before asking for faults")
        counts = maps.counts[:, self.reference.live].astype(np.float64)
        told = ~self.reference.blank(counts)
        chains = FaultFilter(self._groups, RATES_ALONE, RATES_MODULE, RATES_BOX)
        gain, variance = self.gain, self.variance + apart * self.drift
        score, channels = np.empty(len(counts)), np.empty(counts.shape)
        for start in range(0, len(counts), STEPS):
            chunk = slice(start, start + STEPS)
            light = _Light.of(counts[chunk], self.reference, gain, variance)
            found = chains.step(_likelihoods(counts[chunk], light, variance, told[chunk]))
            score[chunk], channels[chunk] = found.score, found.channels
            change, error = self._change(counts[chunk], light, variance, (found.channels < CLEAN) & told[chunk, None])
            gain, variance = _updated(gain, variance, change, error)
        return Suspicion(score, channels)

    @staticmethod
    def _change(counts: np.ndarray, light: _Light, variance: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much log-gains are off, (live,), and its error, inf where nothing is known; use: bool, (n, live)."""
        expected = light.expected()
        deviation = expected.deviation()
        residual = (counts - expected.mean) / deviation
        near = np.abs(residual) < JUMP * expected.deviation(variance) / deviation
        leverage = np.where(use & near, expected.slope / deviation, 0.0)
        information = (leverage**2).sum(axis=0)
        known = information > 0
        change = np.divide((leverage * residual).sum(axis=0), information, out=np.zeros(len(variance)), where=known)
        return change, np.divide(1.0, np.sqrt(information), out=np.full(len(variance), np.inf), where=known)

    def state(self) -> dict[str, np.ndarray]:
        """All but the reference, as named arrays."""
        return {
            "gain": self.gain.copy(),
            "variance": self.variance.copy(),
            "drift": np.array(self.drift),
            "runs": np.array(self.runs),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged or of another reference."""
        missing = [name for name in ("gain", "variance", "drift", "runs") if name not in state]
        if missing or np.shape(state["gain"]) != self.gain.shape or np.shape(state["variance"]) != self.gain.shape:
            raise StateError(f"the state of the fault score lacks {', '.join(missing) or 'channels'}; it is damaged")
        self.gain, self.variance = np.array(state["gain"]), np.array(state["variance"])
        self.drift, self.runs = float(state["drift"]), int(state["runs"])


def _updated(gain: np.ndarray, variance: np.ndarray, change: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains and their variances after a measurement; one that is too far off is not believed."""
    total = variance + error**2
    weight = np.where(np.isfinite(total) & (change**2 < JUMP**2 * total), variance / np.maximum(total, 1e-300), 0.0)
    return gain + weight * np.where(weight > 0, change, 0.0), variance * (1 - weight)


@dataclass(frozen=True, eq=False)
class _Light:
    """Of lumisections: events N, R λ exp(g), and variance of a count over that of a count of events, all (n, live)."""

    events: np.ndarray
    rate: np.ndarray
    over: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, reference: Reference, gain: np.ndarray, variance: np.ndarray) -> _Light:
        """Events, which are the same in a ring, and pileup as the reference reads them off two groups of rings, moved to
        where all channels want them.

        By least squares, with residuals cut at 4 deviations (Huber, Robust Statistics, 1981, sec. 7.8): what is misjudged here
        is an error that all channels share, and passes for a fault of whatever is large.
        """
        response, ring = reference.response(counts), reference.ring
        binomial = response.events * response.fired * (1 - response.fired)
        over = np.where(binomial > FEW, response.deviation**2 / np.maximum(binomial, FEW), 1.0)
        light = cls(medians(response.events, ring), rate_of(response.fired) * np.exp(gain), np.clip(over, 1.0, 4.0))
        for _ in range(ROUNDS):
            expected = light.expected()
            deviation = expected.deviation(variance)
            # A dead channel knows nothing of events: where half the detector is off, the other half would look hot.
            alive = (counts > 0) | (expected.mean < FEW)
            residual = np.where(alive, np.clip((counts - expected.mean) / deviation, -JUMP, JUMP), 0.0)
            deviation = np.where(alive, deviation, np.inf)
            along = np.stack([expected.mean / deviation, expected.slope / deviation], axis=1)
            product = np.einsum("nic,njc->nij", along, along) + 1e-9 * np.eye(2)
            shift = np.linalg.solve(product, np.einsum("nic,nc->ni", along, residual)[..., None])
            shift = np.clip(shift, -FARTHEST, FARTHEST)
            light = cls(light.events * (1 + shift[:, 0]), light.rate * np.exp(shift[:, 1]), light.over)
        return light

    def expected(self, factor: float = 1.0) -> _Counts:
        """What is to be counted where rates are multiplied by a factor."""
        rate = factor * self.rate
        stretched = np.log1p(rate / SHAPE)
        log_silent = -SHAPE * stretched
        mean = -self.events * np.expm1(log_silent)
        slope = self.events * rate * np.exp(log_silent - stretched)
        return _Counts(mean, slope, log_silent, self.over * mean * np.exp(log_silent))


@dataclass(frozen=True, eq=False)
class _Counts:
    """Mean count, its slope with the logarithm of the rate, log of the probability not to fire, and variance, all (n, live)."""

    mean: np.ndarray
    slope: np.ndarray
    log_silent: np.ndarray
    variance: np.ndarray

    def deviation(self, of_gains: np.ndarray | float = 0.0) -> np.ndarray:
        """Of the count, with gains of that variance."""
        return np.sqrt(self.variance + self._more(of_gains) + LEAST)

    def log_likelihood(self, counts: np.ndarray, silent: np.ndarray, best: np.ndarray, of_gains: np.ndarray) -> np.ndarray:
        """-D / 2 φ - log(φ) / 2, D the deviance of a binomial count and φ by how much more than one it scatters.

        Quasi-likelihood (McCullagh and Nelder, Generalized Linear Models, 1989, ch. 9): nearly full channels miss a few events
        only, and of few a normal law would find 8 where 2 are due a proof. What all states share is left out.

        silent: events in which a channel did not fire. best: the log-likelihood of the counts under themselves.
        """
        fired = np.clip(-np.expm1(self.log_silent), _NEVER, 1.0)
        deviance = 2 * (best - counts * np.log(fired) - silent * self.log_silent)
        single = self.mean * np.exp(self.log_silent) + LEAST
        more = np.maximum((self.variance + self._more(of_gains)) / single, 1.0)
        return np.asarray(-0.5 * (deviance / more + np.log(more)))

    def _more(self, of_gains: np.ndarray | float) -> np.ndarray:
        return np.asarray((RELATIVE * self.mean) ** 2 + of_gains * self.slope**2)


def _likelihoods(counts: np.ndarray, light: _Light, variance: np.ndarray, told: np.ndarray) -> Likelihoods:
    """Of counts (n, live) under gains of that variance; the same for all states where told, bool (n,), is False."""
    # No events and no counts: a share of what is as good as nothing, not 0 / 0.
    total = np.maximum(np.maximum(light.events, counts), np.finfo(np.float64).tiny)
    silent = total - counts
    best = xlogy(counts, counts / total) + xlogy(silent, silent / total)

    def of(factor: float) -> np.ndarray:
        return light.expected(factor).log_likelihood(counts, silent, best, variance)

    by_factor = {factor: of(factor) for factor in {*ALONE, *MODULE, *BOX}}
    scatter = np.maximum(counts * silent / total, 1 / 3)  # of a normal count that is as it was seen
    anything = 0.5 * np.log(2 * np.pi * scatter) - np.log1p(total)
    found = Likelihoods(
        of(1.0),
        np.stack([*(by_factor[factor] for factor in ALONE), anything], axis=2),
        np.stack([by_factor[factor] for factor in MODULE], axis=2),
        np.stack([by_factor[factor] for factor in BOX], axis=2),
    )
    for values in vars(found).values():
        values[~told] = 0.0
    return found
