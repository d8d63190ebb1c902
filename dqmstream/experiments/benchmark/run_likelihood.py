"""The likelihood of counts in a run whose truth is known, as a function of events N and pileup R.

Channels are independent given the hidden numbers of a lumisection, so the likelihood is a product over groups of channels:

    L = prod_c f_c(x_c) * prod_g sum_s w_gs prod_{c in g} f_c(x_c; factor_gsc)

g: the movements of the run (`dqmstream.experiments.simulator.movements`), which share no channel; s: the values of a hidden
number on its grid, with weights w. f_c: Binomial(N, p_c) or, if counts are overdispersed, a beta-binomial distribution, with
p_c = 1 - (1 + R rate_c / K)^-K. A channel that flickers is out, and counts nothing, with its probability in time:
f_c = (1 - out) f_c + out [x_c = 0]. A readout box that trips is off with the share of the run for which it is: the likelihood
is (1 - off) L + off L' [all counts of the box are 0], with L' the likelihood of all other channels.

Where drop-outs, trips or wandering patterns persist, lumisections are not independent given the run, and this is the likelihood
of one lumisection whose neighbours are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import gammaln, logsumexp, psi, xlogy

from dqmstream.experiments.simulator import LIVE, K, SimulatedRun
from dqmstream.experiments.simulator.movements import HiddenGrid, Swaying
from dqmstream.experiments.simulator.run_law import FLICKER_OUT_P, RunLaw, concentration
from dqmstream.lumisection import rbx_mask


@dataclass(frozen=True, eq=False)
class RunTruth:
    """True parameters of a run. rate: of the live channels, (live,), with faults that last the whole run.

    law: what moves within the run. off_p: share of the run for which the box of law.trip is off.
    """

    rate: np.ndarray
    law: RunLaw = field(default_factory=RunLaw)
    off_p: float = 0.0

    @classmethod
    def of(cls, run: SimulatedRun) -> RunTruth:
        rate = run.rate[LIVE].copy()
        if run.law is None:
            return cls(rate, RunLaw(movements=tuple(_noisy_box(**box) for box in run.truth["common_mode"])))
        for fault in run.law.lasting:
            rate[fault.channels[LIVE]] *= fault.factor
        length = len(run.events)
        return cls(rate, run.law, run.law.trip_lumisections(length) / length if run.law.trip else 0.0)


def _noisy_box(side: int, n: int, sigma: float) -> Swaying:
    channels = np.flatnonzero(rbx_mask(side, n)[LIVE])
    return Swaying({"kind": "box", "side": side, "n": n}, channels, np.ones(len(channels)), sigma)


class RunLikelihood:
    """Log-likelihood of counts (n, live) in a run as a function of events and pileup, without the binomial coefficients."""

    def __init__(self, counts: np.ndarray, truth: RunTruth) -> None:
        self._counts = counts.astype(np.float64)
        self._truth, self._law = truth, truth.law
        live = counts.shape[1]
        self._box = np.zeros(live, dtype=bool)
        self._silent = np.zeros(len(counts), dtype=bool)
        if self._law.trip is not None:
            self._box = rbx_mask(*self._law.trip)[LIVE]
            self._silent = np.all(self._counts[:, self._box] == 0, axis=1)
        self._flickers = np.isin(np.arange(live), self._law.flickers)
        self._quiet = truth.rate > 0
        self._movements = [
            (one.channels[self._quiet[one.channels]], one.grid().of(self._quiet[one.channels])) for one in self._law.movements
        ]
        for channels, _ in self._movements:
            self._quiet[channels] = False
        self._impossible = np.asarray((self._counts[:, truth.rate == 0] > 0).any(axis=1))

    def value(self, events: np.ndarray, pileup: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """log L of the given rows (all by default), float64 (m,), for their events and pileup (m,).

        -inf where a channel counts whose rate is 0.
        """
        rows = np.arange(len(self._counts)) if rows is None else rows
        log_l = self._of_channels(rows, events, pileup, np.ones(len(self._quiet), dtype=bool))
        if self._law.trip is not None:
            log_l += np.log1p(-self._truth.off_p)
            silent = self._silent[rows]
            if silent.any():
                others = self._of_channels(rows[silent], events[silent], pileup[silent], ~self._box)
                log_l[silent] = np.logaddexp(log_l[silent], np.log(self._truth.off_p) + others)
        log_l[self._impossible[rows]] = -np.inf
        return log_l

    def step(
        self, rows: np.ndarray, events: np.ndarray, pileup: np.ndarray, least: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A Newton step in (events, pileup) and their standard deviations, both (2, m). least: lower limit of events, (m,).

        The gradient of an integrated movement is the mean of its gradients over the posterior of its hidden number (Fisher's
        identity), and the information is the mean less the variance of the gradient (Louis, J. R. Stat. Soc. B 44, 1982, 226).
        Both are evaluated at the posterior mean of the factors, which is sufficient since the logarithm of the likelihood is
        nearly quadratic in them. Channels that are out or off are left out.
        """
        counts, lowest, events, over = self._counts[rows], events <= least, events[:, None], self._law.overdispersion
        rates, by_pileup = self._response(pileup)
        posteriors = [self._posterior(rows, channels, grid, events[:, 0], pileup, rates) for channels, grid in self._movements]
        for posterior, (channels, grid) in zip(posteriors, self._movements, strict=True):
            rates[:, channels] *= posterior @ grid.factors
            by_pileup[:, channels] *= posterior @ grid.factors
        counting = (self._truth.rate > 0) & ~(self._flickers & (counts == 0))
        counting[np.ix_(self._silent[rows], self._box)] = False
        activity = np.where(counting, rates * pileup[:, None], 1.0)
        by_log = np.where(counting, by_pileup / activity, 0.0)  # d(log activity) / dR
        of_events, of_activity = log_density_slopes(counts, events, activity, over)
        p, grown = -np.expm1(-K * np.log1p(activity / K)), activity / (1 + activity / K)
        own = np.where(counting, grown / over, 0.0)  # of N and the logarithm of the activity
        squared = events * (1 - p) / p * grown * own  # of the logarithm of the activity
        gradient = np.stack([np.where(counting, of_events, 0.0).sum(axis=1), (of_activity * by_log).sum(axis=1)])
        gradient[0] += (psi(events + 1) - psi(events - counts + 1)).sum(axis=1)  # of the binomial coefficients
        of_choices = (_trigamma(events - counts + 1) - _trigamma(events + 1)).sum(axis=1) / over
        information = np.array(
            [[of_choices, (own * by_log).sum(axis=1)], [np.zeros(len(rows)), (squared * by_log**2).sum(axis=1)]]
        )
        for posterior, (channels, grid) in zip(posteriors, self._movements, strict=True):
            by_value = [own[:, channels] @ grid.factors.T, (squared * by_log)[:, channels] @ grid.factors.T]
            off_mean = [one - (posterior * one).sum(axis=1, keepdims=True) for one in by_value]
            for i, j in ((0, 0), (0, 1), (1, 1)):
                information[i, j] -= (posterior * off_mean[i] * off_mean[j]).sum(axis=1)
        return _newton(gradient, information, lowest)

    def _posterior(
        self,
        rows: np.ndarray,
        channels: np.ndarray,
        grid: HiddenGrid,
        events: np.ndarray,
        pileup: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """Probability of each value of a hidden number given the counts, (m, values)."""
        log_l = self._of_movement(rows, channels, grid.nodes, events, pileup, rates) @ grid.between + grid.log_weights
        return np.asarray(np.exp(log_l - logsumexp(log_l, axis=1, keepdims=True)))

    def _of_channels(self, rows: np.ndarray, events: np.ndarray, pileup: np.ndarray, among: np.ndarray) -> np.ndarray:
        """log L of these channels, bool (live,), with movements integrated out: (m,)."""
        rates, _ = self._response(pileup)
        quiet = np.flatnonzero(self._quiet & among)
        log_l = self._log_density(rows, quiet, events, pileup, rates[:, quiet]).sum(axis=1)
        for channels, grid in self._movements:
            kept = among[channels]
            by_value = self._of_movement(rows, channels[kept], grid.nodes[:, kept], events, pileup, rates) @ grid.between
            log_l += logsumexp(by_value + grid.log_weights, axis=1)
        return np.asarray(log_l)

    def _of_movement(
        self,
        rows: np.ndarray,
        channels: np.ndarray,
        nodes: np.ndarray,
        events: np.ndarray,
        pileup: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """log L of the channels at each node of a hidden number, (m, nodes)."""
        own = rates[:, channels]
        at = [self._log_density(rows, channels, events, pileup, own * factor).sum(axis=1) for factor in nodes]
        return np.stack(at, axis=1)

    def _log_density(
        self, rows: np.ndarray, channels: np.ndarray, events: np.ndarray, pileup: np.ndarray, rates: np.ndarray
    ) -> np.ndarray:
        """log f_c(x_c) without the binomial coefficient, (m, channels)."""
        counts = self._counts[np.ix_(rows, channels)]
        log_f = log_density(counts, events[:, None], pileup[:, None] * rates, self._law.overdispersion)
        flickers = np.flatnonzero(self._flickers[channels])
        if len(flickers):
            inside = log_f[:, flickers] + np.log1p(-FLICKER_OUT_P)
            none = counts[:, flickers] == 0
            log_f[:, flickers] = np.where(none, np.logaddexp(inside, np.log(FLICKER_OUT_P)), inside)
        return log_f

    def _response(self, pileup: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rates without what moves, and d(rate * pileup) / d(pileup), both (m, live)."""
        rates = self._law.response(self._truth.rate, pileup)
        slopes = rates.copy()
        for one in self._law.thresholds:
            above = np.where(pileup > one.threshold, one.slope * pileup, 0.0)
            slopes[:, one.channels] += self._truth.rate[one.channels] * above[:, None]
        return rates, slopes


def log_density(counts: np.ndarray, events: np.ndarray, activity: np.ndarray, overdispersion: float) -> np.ndarray:
    """log f(x) of each channel without the binomial coefficient, (m, channels). activity: R * rate > 0. events: (m, 1)."""
    log_q = -K * np.log1p(activity / K)
    p = -np.expm1(log_q)
    if overdispersion == 1:
        return np.asarray(xlogy(counts, p) + (events - counts) * log_q)
    strength = concentration(events, overdispersion)
    a, b = p * strength, np.exp(log_q) * strength
    log_f = gammaln(counts + a) - gammaln(a) + gammaln(events - counts + b) - gammaln(b)
    return np.asarray(log_f + gammaln(strength) - gammaln(strength + events))


def log_density_slopes(
    counts: np.ndarray, events: np.ndarray, activity: np.ndarray, overdispersion: float
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `log_density` in N and in the logarithm of the activity, (m, channels) each."""
    grown = activity / (1 + activity / K)  # -d(log q) / d(log activity)
    log_q = -K * np.log1p(activity / K)
    q, p = np.exp(log_q), -np.expm1(log_q)
    if overdispersion == 1:
        return log_q, (counts * q / p - (events - counts)) * grown
    strength, grows = concentration(events, overdispersion), 1 / (overdispersion - 1)
    a, b = p * strength, q * strength
    upper, total = psi(events - counts + b), psi(strength + events)
    of_a, of_b = psi(counts + a) - psi(a), upper - psi(b)
    of_events = grows * (p * of_a + q * of_b + psi(strength) - total) + upper - total
    return of_events, strength * (of_a - of_b) * q * grown


def _newton(gradient: np.ndarray, information: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A step in two variables, and their standard deviations, (2, m) each. held: where the first must not decrease."""
    nn, nr, rr = information[0, 0], information[0, 1], information[1, 1]
    # A matrix that is not positive definite is replaced by its diagonal. Where N is at its limit, only R changes.
    definite = nn * rr - nr**2 > 1e-3 * nn * rr
    held = held & (gradient[0] < 0)
    gradient[0, held] = 0.0
    off = np.where(definite & ~held, nr, 0.0)
    step = np.stack([rr * gradient[0] - off * gradient[1], nn * gradient[1] - off * gradient[0]])
    return step / (nn * rr - off**2), 1 / np.sqrt(np.stack([nn, rr]))


def _trigamma(z: np.ndarray) -> np.ndarray:
    """psi'(z) for z >= 1, within 1.5 %: sufficient for a curvature, and ten times as fast as the exact function."""
    return np.asarray((1 + (0.5 + 1 / (6 * z)) / z) / z)
