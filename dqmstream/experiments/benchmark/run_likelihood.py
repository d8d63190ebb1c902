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
from dqmstream.experiments.simulator.movements import Swaying
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
        if self._law.trip is not None:
            self._box = rbx_mask(*self._law.trip)[LIVE]
        self._silent = self._box.any() & (self._counts[:, self._box] == 0).all(axis=1)
        self._flickers = np.isin(np.arange(live), self._law.flickers)
        self._movements = [(one.channels, *one.grid()) for one in self._law.movements]
        self._quiet = np.ones(live, dtype=bool)
        for channels, _, _ in self._movements:
            self._quiet[channels] = False

    def value(self, events: np.ndarray, pileup: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """log L of the given rows (all by default), float64 (m,), for their events and pileup (m,)."""
        rows = np.arange(len(self._counts)) if rows is None else rows
        log_l = self._of_channels(rows, events, pileup, np.ones(len(self._quiet), dtype=bool))
        if self._law.trip is not None:
            log_l += np.log1p(-self._truth.off_p)
            silent = self._silent[rows]
            if silent.any():
                others = self._of_channels(rows[silent], events[silent], pileup[silent], ~self._box)
                log_l[silent] = np.logaddexp(log_l[silent], np.log(self._truth.off_p) + others)
        return log_l

    def step(
        self, rows: np.ndarray, events: np.ndarray, pileup: np.ndarray, least: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A Newton step in (events, pileup) and their standard deviations, both (2, m). least: lower limit of events, (m,).

        The gradient of an integrated movement is the mean of its gradients over the posterior of its hidden number (Fisher's
        identity). It is evaluated at the posterior mean of the factors, which is sufficient since the logarithm of the
        likelihood is nearly quadratic in them. Channels that are out or off are left out.
        """
        counts, lowest = self._counts[rows], events <= least
        rates, slopes = self._response(pileup)
        for channels, factors, log_weights in self._movements:
            log_posterior = self._of_movement(rows, channels, factors, events, pileup, rates) + log_weights
            posterior = np.exp(log_posterior - logsumexp(log_posterior, axis=1, keepdims=True))
            rates[:, channels] *= posterior @ factors
            slopes[:, channels] *= posterior @ factors
        weight = np.where(self._flickers & (counts == 0), 0.0, 1.0)
        weight[np.ix_(self._silent[rows], self._box)] = 0.0
        gradient, information = _slopes(
            counts, events[:, None], rates * pileup[:, None], slopes, self._law.overdispersion, weight
        )
        # d/dN of the binomial coefficients of all channels.
        upper = events[:, None]
        gradient[0] += (psi(upper + 1) - psi(upper - counts + 1)).sum(axis=1)
        information[0, 0] = (_trigamma(upper - counts + 1) - _trigamma(upper + 1)).sum(axis=1) / self._law.overdispersion
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

    def _of_channels(self, rows: np.ndarray, events: np.ndarray, pileup: np.ndarray, among: np.ndarray) -> np.ndarray:
        """log L of these channels, bool (live,), with movements integrated out: (m,)."""
        rates, _ = self._response(pileup)
        quiet = np.flatnonzero(self._quiet & among)
        log_l = self._log_density(rows, quiet, events, pileup, rates[:, quiet]).sum(axis=1)
        for channels, factors, log_weights in self._movements:
            kept = among[channels]
            by_value = self._of_movement(rows, channels[kept], factors[:, kept], events, pileup, rates)
            log_l += logsumexp(by_value + log_weights, axis=1)
        return np.asarray(log_l)

    def _of_movement(
        self,
        rows: np.ndarray,
        channels: np.ndarray,
        factors: np.ndarray,
        events: np.ndarray,
        pileup: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """log L of the channels at each value of a hidden number, (m, values)."""
        own = rates[:, channels]
        at = [self._log_density(rows, channels, events, pileup, own * factor).sum(axis=1) for factor in factors]
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
    """log f(x) of each channel without the binomial coefficient, (m, channels). activity: R * rate. events: (m, 1)."""
    log_q = -K * np.log1p(activity / K)
    p = -np.expm1(log_q)
    if overdispersion == 1:
        return np.asarray(xlogy(counts, p) + (events - counts) * log_q)
    strength = concentration(events, overdispersion)
    a, b = p * strength, np.exp(log_q) * strength
    with np.errstate(invalid="ignore"):  # a channel that cannot count has a = 0
        log_f = gammaln(counts + a) - gammaln(a) + gammaln(events - counts + b) - gammaln(b)
        log_f += gammaln(strength) - gammaln(strength + events)
    return np.where(p > 0, log_f, np.where(counts > 0, -np.inf, 0.0))


def _slopes(
    counts: np.ndarray,
    events: np.ndarray,
    activity: np.ndarray,
    by_pileup: np.ndarray,
    overdispersion: float,
    weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (2, m) and information matrix (2, 2, m) of `log_density` in N and R, summed over channels with a weight.

    by_pileup: derivative of the activity, (m, channels). The information is that of binomial counts over the overdispersion.
    """
    grown = 1 + activity / K
    log_q = -K * np.log(grown)
    q, p = np.exp(log_q), -np.expm1(log_q)
    odds = np.divide(q, p, out=np.zeros_like(p), where=p > 0)
    slope = weight * by_pileup / grown  # -d log q / dR
    if overdispersion == 1:
        by_n, by_p = weight * log_q, (counts * odds - (events - counts)) / np.maximum(q, np.finfo(float).tiny)
    else:
        by_n, by_p = _beta_slopes(counts, events, np.maximum(p, np.finfo(float).tiny), q, overdispersion)
        by_n = by_n * weight
    gradient = np.stack([by_n.sum(axis=1), (by_p * q * slope).sum(axis=1)])
    rr = (events * odds * slope**2 / np.where(weight > 0, weight, 1.0)).sum(axis=1) / overdispersion
    nr = slope.sum(axis=1) / overdispersion
    return gradient, np.array([[np.zeros_like(rr), nr], [nr, rr]])


def _beta_slopes(
    counts: np.ndarray, events: np.ndarray, p: np.ndarray, q: np.ndarray, overdispersion: float
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the beta-binomial `log_density` in N and in p, (m, channels) each."""
    strength, grows = concentration(events, overdispersion), 1 / (overdispersion - 1)
    a, b = p * strength, q * strength
    of_a, of_b = psi(counts + a) - psi(a), psi(events - counts + b) - psi(b)
    total = psi(strength) - psi(strength + events)
    by_n = grows * (p * of_a + q * of_b + total) + psi(events - counts + b) - psi(strength + events)
    return by_n, strength * (of_a - of_b)


def _trigamma(z: np.ndarray) -> np.ndarray:
    """psi'(z) for z >= 1, within 1.5 %: sufficient for a curvature, and ten times as fast as the exact function."""
    return np.asarray((1 + (0.5 + 1 / (6 * z)) / z) / z)
