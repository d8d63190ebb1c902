"""The fault score: log-odds that something has failed in a lumisection, and for each channel that it has.

With N events, a channel is expected to count N p, p = P(exp(g) R λ) (`response.law`). Its log-gain g since the reference run is
followed as a random walk (Kalman, J. Basic Eng. 82 (1960) 35), so drift and ageing are no faults. What can fail, and the
factors that a fault puts on the rate, is a list (`ALONE`, `MODULE`, `BOX`); the evidence for each adds up over the lumisections
of a run (`monitoring.fault_filter`).

A blank lumisection (`learners.blank`) is no evidence: the odds change only as time alone changes them. A truncated one has the
standard deviations of its few events.

While a run is scored, the gains of good channels are followed from lumisection to lumisection, and dropped afterwards; only
`learn` changes what is known. A gain that jumps is not followed: the channel stays faulty until it comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from dqmstream.errors import InputError, StateError
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.fault_filter import FailureGroups, FaultFilter, Likelihoods, Rates, Suspicion
from dqmstream.learners.response.law import SHAPE, rate_of
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE, medians

ALONE = (0.0, 0.25, 0.4, 0.55, 0.7, 0.82, 2.0)
"""Factors on the rate of a channel that fails alone. One more state allows any count."""

MODULE = (0.0,)
"""Factors on the rates of a readout module that fails."""

BOX = (0.0, 0.82, 0.88, 0.94)
"""Factors on the rates of a readout box that fails."""

END_OF_LOSS, END_OF_ANY = 0.01, 0.4
"""Probabilities that a fault ends in a lumisection: one with a listed factor, and one with any count, for short faults."""

BEGINS = 1e-5
"""Probability that a channel fails in a lumisection: one of the 932 channels of HE in about 100 lumisections."""

RATES_ALONE = Rates((BEGINS / len(ALONE),) * len(ALONE) + (BEGINS,), (END_OF_LOSS,) * len(ALONE) + (END_OF_ANY,))
RATES_MODULE = Rates((BEGINS / 10,), (END_OF_LOSS,))
RATES_BOX = Rates((BEGINS / 4,) * len(BOX), (END_OF_LOSS,) * len(BOX))
"""Rates of beginning and end of each state of a channel, a module and a box."""

EVENTS_ERROR = 3e-4
"""Smallest relative error of the number of events."""

LEAST_BINOMIAL = 10.0
"""Binomial variance of a count below which its scatter beyond binomial cannot be measured in the reference run."""

LEAST_VARIANCE = 0.1
"""Smallest variance of a count, for channels that fire in every event."""

_NEVER = 1e-6
"""Probability that a dead channel counts in an event."""

DRIFT = 0.01
"""Starting value for the standard deviation of a log-gain from run to run; later estimated from the runs."""

FIRST_SPREAD = 0.15
"""Standard deviation of a log-gain before the first run. Channels that are full in that run keep it."""

DRIFT_WEIGHT = 0.3
"""Weight of the newest run in the estimate of the drift."""

ROUNDS, LONGEST_STEP = 2, 0.3
"""Steps of the fit of events and pileup, and the largest relative change in a step."""

AT_ONCE = 20
"""Lumisections that are scored with the same gains."""

GOOD = np.log(0.05)
"""Log-odds of a fault from which a channel's count is not used for its gain."""

OUTLYING = 4.0
"""Standard deviations from which a gain is not followed, and a count is not used."""


class FaultScore:
    """Follows the gains of the live channels from run to run, and scores lumisections for faults.

    gain: log-gains, variance: of their errors, (live,). drift: variance of a log-gain from run to run. runs: number learnt.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._groups = FailureGroups.of(reference.live)
        self.gain = np.zeros(reference.channels)
        self.variance = np.zeros(reference.channels)
        self.drift = DRIFT**2
        self.runs = 0

    def learn(self, maps: Maps) -> None:
        """Update the gains by the lumisections of the next run (its train part), without outlying counts."""
        counts = maps.counts[:, self.reference.live].astype(np.float64)
        counts = counts[~self.reference.blank(counts)]
        before = self.variance + (self.drift if self.runs else FIRST_SPREAD**2)
        exposure = _Exposure.of(counts, self.reference, self.gain, before)
        change, error = self._change(counts, exposure, before, np.ones(counts.shape, dtype=bool))
        if self.runs:
            known = np.isfinite(error) & (error < np.median(error))
            moved = np.median(change[known] ** 2) / MEDIAN_OF_SQUARE if known.any() else 0.0
            explained = np.median((error**2 + self.variance)[known]) if known.any() else 0.0
            self.drift += DRIFT_WEIGHT * (max(float(moved - explained), 1e-6) - self.drift)
        self.gain, self.variance = _updated(self.gain, before, change, error)
        self.runs += 1

    def set_reference(self, reference: Reference) -> None:
        """Use an improved reference (`Reference.updated_by`); the gains are converted to it."""
        if reference is not self.reference:
            factor = self.reference.gain_factor(reference)
            self.gain, self.variance, self.reference = self.gain * factor, self.variance * factor**2, reference

    def score(self, maps: Maps, apart: int = 1, own: tuple[np.ndarray, np.ndarray] | None = None) -> Suspicion:
        """Log-odds of a fault for each lumisection of one run, in their order, and for each channel in it.

        apart: distance of the run from the last learnt one, in runs, over which gains have drifted. own: gains measured in this
        run, relative to the reference, and their errors, (live,). They are used where they fit the gains that are followed, so
        that a channel that is dead throughout stays faulty. Values depend on their own lumisection and those before it. Raises
        InputError before the first run.
        """
        return self.followed(maps, apart, own)[0]

    def followed(
        self, maps: Maps, apart: int = 1, own: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[Suspicion, np.ndarray]:
        """`score`, and the residuals to the gains that it follows: (count - expected) / deviation, float32, (n, live).

        A residual depends on its own lumisection and on those of earlier chunks (`AT_ONCE`). The deviation includes the error
        of the gain.
        """
        if not self.runs:
            raise InputError("no run is known yet: learn one before asking for faults")
        counts = maps.counts[:, self.reference.live].astype(np.float64)
        informative = ~self.reference.blank(counts)
        chains = FaultFilter(self._groups, RATES_ALONE, RATES_MODULE, RATES_BOX)
        gain, variance = self.gain, self.variance + apart * self.drift
        if own is not None:
            measured, error = np.log(np.maximum(1 + own[0], _NEVER)), own[1] ** 2
            fits = (measured - gain) ** 2 < OUTLYING**2 * (variance + error)
            gain, variance = np.where(fits, measured, gain), np.where(fits, error + self.drift, variance)
        score, channels = np.empty(len(counts)), np.empty(counts.shape)
        residuals = np.empty(counts.shape, dtype=np.float32)
        for start in range(0, len(counts), AT_ONCE):
            chunk = slice(start, start + AT_ONCE)
            exposure = _Exposure.of(counts[chunk], self.reference, gain, variance)
            found = chains.step(_likelihoods(counts[chunk], exposure, variance, informative[chunk]))
            score[chunk], channels[chunk] = found.score, found.channels
            expected = exposure.expected()
            residuals[chunk] = (counts[chunk] - expected.mean) / expected.deviation(variance)
            change, error = self._change(counts[chunk], exposure, variance, (found.channels < GOOD) & informative[chunk, None])
            gain, variance = _updated(gain, variance, change, error)
        return Suspicion(score, channels), residuals

    @staticmethod
    def _change(
        counts: np.ndarray, exposure: _Exposure, variance: np.ndarray, use: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measured change of the log-gains and its error (inf without information), (live,). use: which counts, (n, live)."""
        expected = exposure.expected()
        deviation = expected.deviation()
        residual = (counts - expected.mean) / deviation
        near = np.abs(residual) < OUTLYING * expected.deviation(variance) / deviation
        leverage = np.where(use & near, expected.slope / deviation, 0.0)
        information = (leverage**2).sum(axis=0)
        known = information > 0
        change = np.divide((leverage * residual).sum(axis=0), information, out=np.zeros(len(variance)), where=known)
        return change, np.divide(1.0, np.sqrt(information), out=np.full(len(variance), np.inf), where=known)

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the reference, as named arrays."""
        return {
            "gain": self.gain.copy(),
            "variance": self.variance.copy(),
            "drift": np.array(self.drift),
            "runs": np.array(self.runs),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged or of another reference."""
        missing = [name for name in ("gain", "variance", "drift", "runs") if name not in state]
        if missing or np.shape(state["gain"]) != self.gain.shape or np.shape(state["variance"]) != self.gain.shape:
            raise StateError(f"the state of the fault score lacks {', '.join(missing) or 'channels'}; it is damaged")
        self.gain, self.variance = np.array(state["gain"]), np.array(state["variance"])
        self.drift, self.runs = float(state["drift"]), int(state["runs"])


def _updated(gain: np.ndarray, variance: np.ndarray, change: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains and their variances after a measurement (Kalman update); outlying measurements are ignored."""
    total = variance + error**2
    weight = np.where(np.isfinite(total) & (change**2 < OUTLYING**2 * total), variance / np.maximum(total, 1e-300), 0.0)
    return gain + weight * np.where(weight > 0, change, 0.0), variance * (1 - weight)


@dataclass(frozen=True, eq=False)
class _Exposure:
    """What the channels of each lumisection are exposed to, all (n, live).

    events: N. rate: R λ exp(g). over: variance of a count over the binomial one.
    """

    events: np.ndarray
    rate: np.ndarray
    over: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, reference: Reference, gain: np.ndarray, variance: np.ndarray) -> _Exposure:
        """Fit events and pileup to all channels of each lumisection, starting from the values of the reference.

        Least squares, with residuals cut at 4 deviations (Huber, Robust Statistics, 1981, sec. 7.8). Events are common to a
        ring. An error here is common to all channels and would look like a fault of large groups. gain, variance: (live,).
        """
        response, ring = reference.response(counts), reference.ring
        binomial = response.events * response.fired * (1 - response.fired)
        over = np.where(binomial > LEAST_BINOMIAL, response.deviation**2 / np.maximum(binomial, LEAST_BINOMIAL), 1.0)
        exposure = cls(medians(response.events, ring), rate_of(response.fired) * np.exp(gain), np.clip(over, 1.0, 4.0))
        for _ in range(ROUNDS):
            expected = exposure.expected()
            deviation = expected.deviation(variance)
            # Dead channels are not used: otherwise, with half of the detector off, the other half would look hot.
            alive = (counts > 0) | (expected.mean < LEAST_BINOMIAL)
            residual = np.where(alive, np.clip((counts - expected.mean) / deviation, -OUTLYING, OUTLYING), 0.0)
            deviation = np.where(alive, deviation, np.inf)
            along = np.stack([expected.mean / deviation, expected.slope / deviation], axis=1)
            product = np.einsum("nic,njc->nij", along, along) + 1e-9 * np.eye(2)
            shift = np.linalg.solve(product, np.einsum("nic,nc->ni", along, residual)[..., None])
            shift = np.clip(shift, -LONGEST_STEP, LONGEST_STEP)
            exposure = cls(exposure.events * (1 + shift[:, 0]), exposure.rate * np.exp(shift[:, 1]), exposure.over)
        return exposure

    def expected(self, factor: float = 1.0) -> _Counts:
        """Expected counts where all rates are multiplied by a factor."""
        rate = factor * self.rate
        stretched = np.log1p(rate / SHAPE)
        log_silent = -SHAPE * stretched
        mean = -self.events * np.expm1(log_silent)
        slope = self.events * rate * np.exp(log_silent - stretched)
        return _Counts(mean, slope, log_silent, self.over * mean * np.exp(log_silent))


@dataclass(frozen=True, eq=False)
class _Counts:
    """Expected counts, all (n, live).

    mean. slope: derivative by log(rate). log_silent: log of the probability of silence. variance: without errors of gains.
    """

    mean: np.ndarray
    slope: np.ndarray
    log_silent: np.ndarray
    variance: np.ndarray

    def deviation(self, of_gains: np.ndarray | float = 0.0) -> np.ndarray:
        """Standard deviation of the count. of_gains: variance of the log-gains, (live,) or 0."""
        return np.sqrt(self.variance + self._extra_variance(of_gains) + LEAST_VARIANCE)

    def log_likelihood(self, counts: np.ndarray, silent: np.ndarray, best: np.ndarray, of_gains: np.ndarray) -> np.ndarray:
        """Quasi-log-likelihood of counts, up to a constant common to all states: -D / (2 φ) - log(φ) / 2.

        D: deviance of a binomial count. φ: its variance over the binomial one. Source: McCullagh and Nelder, Generalized Linear
        Models, 1989, ch. 9. A normal likelihood would fail for nearly full channels, which miss only a few events.

        silent: events in which a channel did not fire. best: log-likelihood of the counts at their own share of events.
        of_gains: variance of the log-gains, (live,).
        """
        fired = np.clip(-np.expm1(self.log_silent), _NEVER, 1.0)
        deviance = 2 * (best - counts * np.log(fired) - silent * self.log_silent)
        single = self.mean * np.exp(self.log_silent) + LEAST_VARIANCE
        more = np.maximum((self.variance + self._extra_variance(of_gains)) / single, 1.0)
        return np.asarray(-0.5 * (deviance / more + np.log(more)))

    def _extra_variance(self, of_gains: np.ndarray | float) -> np.ndarray:
        return np.asarray((EVENTS_ERROR * self.mean) ** 2 + of_gains * self.slope**2)


def _likelihoods(counts: np.ndarray, exposure: _Exposure, variance: np.ndarray, informative: np.ndarray) -> Likelihoods:
    """Log-likelihoods of counts (n, live) in all states; 0 for all states of blank lumisections. variance: of the log-gains."""
    # The tiny total avoids 0 / 0 without events and counts.
    total = np.maximum(np.maximum(exposure.events, counts), np.finfo(np.float64).tiny)
    silent = total - counts
    best = xlogy(counts, counts / total) + xlogy(silent, silent / total)

    def of(factor: float) -> np.ndarray:
        return exposure.expected(factor).log_likelihood(counts, silent, best, variance)

    by_factor = {factor: of(factor) for factor in {*ALONE, *MODULE, *BOX}}
    scatter = np.maximum(counts * silent / total, 1 / 3)  # variance of the count at its own share of events
    anything = 0.5 * np.log(2 * np.pi * scatter) - np.log1p(total)
    found = Likelihoods(
        of(1.0),
        np.stack([*(by_factor[factor] for factor in ALONE), anything], axis=2),
        np.stack([by_factor[factor] for factor in MODULE], axis=2),
        np.stack([by_factor[factor] for factor in BOX], axis=2),
    )
    for values in vars(found).values():
        values[~informative] = 0.0
    return found
