"""The saturating response: counts N A P(R λ) by the law of `response.law`, with N and R read off a and b."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.base import (
    LEAST_SILENCE,
    MOST_SILENCE,
    NEAR,
    ROUNDING,
    WINDOW_FACTOR,
    Expected,
    MeasureConditions,
    Response,
)
from dqmstream.learners.response.law import probability, rate_of, sensitivity
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.rings import medians

_FULLEST = 1 - 1e-6
"""Largest probability to fire that is expected; with 1, counts would have no scatter."""

_NEARLY_ALL = (0.01, 0.99)
"""Quantiles of a run's pileup between which the law counts as fitted."""

_NARROW = 1.2
"""A fitted range of pileup is narrow where its highest value is less than 1.2 times its lowest."""

_TRUSTED_FACTOR = 2.0
"""Factor in pileup outside a wide fitted range up to which the law still counts as fitted."""

_LAW_ERROR = 0.005
"""Error of a log-rate due to the law itself, times the square of log(pileup / edge of the fitted range). Inside the range the
law has the right value and slope. Ring means agree with it within 1.5 % over a factor of 12 in pileup, which is 3 % of a rate
in the dimmest ring."""

_PILEUPS = np.geomspace(0.02, 50, 600)
"""Grid of pileups, relative to the reference run, on which the pileup of a lumisection is interpolated."""

_ROUNDS = 4
"""Steps of the fit."""


class Saturating(Response):
    """Counts N A P(R λ), where N and R of a lumisection follow from its a and b; both are 1 in the reference run.

    size: A times the number of events of the reference run, (live,). rate: λ, (live,). spread: standard deviation of a count
    over that of a binomial count, (live,). at: a and b for N = 1 at each pileup of a fixed grid, (600, 2). error: error of
    log λ, (live,), 0 where the rates were fitted to a moving pileup; such a law is trusted at all pileups. span: lowest and
    highest fitted pileup, (2,). first_span: the same by the first run alone. The last three are None in states of older
    versions; then every pileup counts as fitted.

    Outside the fitted range, standard deviations include the errors of the rates and of the law. These are the same in
    consecutive lumisections, so they are multiplied by sqrt(30), for a window of 30 lumisections.
    """

    kind = "saturating"
    arrays = ("size", "rate", "spread", "at")
    more = ("error", "span", "first_span")

    def __init__(
        self,
        size: np.ndarray,
        rate: np.ndarray,
        spread: np.ndarray,
        at: np.ndarray,
        error: np.ndarray | None = None,
        span: np.ndarray | None = None,
        first_span: np.ndarray | None = None,
    ) -> None:
        self.size, self.rate, self.spread, self.at = size, rate, spread, at
        self.error, self.span, self.first_span = error, span, first_span

    @classmethod
    def fit(
        cls, counts: np.ndarray, at: np.ndarray, conditions: MeasureConditions, quadratic: Quadratic, ring: np.ndarray
    ) -> tuple[Saturating, np.ndarray]:
        """Fit to a run whose pileup moves; also returns the residual variance at b = 1, (live,).

        counts: (n, live). at: their conditions, (n, 2). quadratic: the quadratic fit to the same run. The rates start from the
        scatter of the counts about the quadratic. Then the rates of each ring are scaled by a common factor until the means
        follow pileup as observed. Single channels are not scaled: over 200 lumisections their slopes are noise.
        """
        profile, full = quadratic.profile, quadratic.full
        rate = rate_of(np.minimum(profile / (medians(profile, ring) / full), 1 - LEAST_SILENCE))
        size = profile / probability(rate)
        for _ in range(_ROUNDS):
            law = cls(size, rate, np.ones_like(rate), conditions_on_grid(size, rate, conditions))
            expected, deviation, fired = law.expected(at)
            level = expected / deviation
            slope = level * (sensitivity(1 - fired) - sensitivity(1 - probability(rate)))
            noise = (counts - expected) / deviation
            a, b, c = (level**2).sum(axis=0), (level * slope).sum(axis=0), (slope**2).sum(axis=0)
            along, across = (level * noise).sum(axis=0), (slope * noise).sum(axis=0)
            own = (across - b * along / a) / np.maximum(c - b * b / a, np.finfo(np.float64).tiny)
            change = np.clip(medians(own, ring), -0.5, 0.5)
            moved = rate * np.exp(change)
            size = size * (1 + (along - b * change) / a) * probability(rate) / probability(moved)
            rate = moved
        law = cls(size, rate, np.ones_like(rate), conditions_on_grid(size, rate, conditions))
        left = law.fit_spread(counts, at)
        law.error = np.zeros_like(rate)
        law.span = law.first_span = law.span_of(at)
        return law, left

    def fit_spread(self, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Set `spread` by counts (n, live) under conditions (n, 2); returns the residual variance at b = 1, (live,)."""
        self.spread = np.ones_like(self.rate)
        expected, deviation, _ = self._at(*self._events_and_pileup(at))
        left = (counts - expected) ** 2
        freedom = len(counts) / max(len(counts) - 2, 1)
        self.spread = np.sqrt((left / deviation**2).mean(axis=0) * freedom)
        return np.asarray((left / at[:, 1:]).mean(axis=0) * freedom)

    def binomial_variance(self, at: np.ndarray) -> np.ndarray:
        """Mean binomial variance of a count at N = 1 under conditions (n, 2): (live,)."""
        fired = probability(self._events_and_pileup(at)[1] * self.rate)
        return np.asarray((self.size * fired * (1 - fired)).mean(axis=0))

    def span_of(self, at: np.ndarray) -> np.ndarray:
        """Range of pileup that holds nearly all lumisections of conditions (n, 2): lowest and highest, (2,)."""
        return np.quantile(self._events_and_pileup(at)[1], _NEARLY_ALL)

    @property
    def open(self) -> bool:
        """Whether later runs may change the rates: the pileup of the first run moved too little to fix them."""
        return self.first_span is not None and bool(self.first_span[1] <= _NARROW * self.first_span[0])

    @property
    def pileup_resolved(self) -> bool:
        """Whether a/b rises monotonically with pileup, from half to twice that of the reference run."""
        near = np.searchsorted(_PILEUPS, (0.5, 2.0))
        return bool((np.diff((self.at[:, 0] / self.at[:, 1])[slice(*near)]) > 0).all())

    @property
    def fitted_range(self) -> tuple[float, float] | None:
        return None if self.span is None else (float(self.span[0]), float(self.span[1]))

    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        pileup = self._events_and_pileup(conditions)[1][:, 0]
        if self.span is None:
            return np.zeros(len(pileup), dtype=bool)
        low, high = self.span
        factor = _TRUSTED_FACTOR if high > _NARROW * low else 1 + NEAR
        return np.asarray((pileup < low / factor) | (pileup > high * factor))

    def _events_and_pileup(self, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N and R of lumisections, relative to the reference run: (n, 1) each."""
        a, b = conditions[:, 0], conditions[:, 1]
        ratio = np.maximum.accumulate(self.at[:, 0] / self.at[:, 1])
        pileup = np.interp(np.divide(a, b, out=np.ones_like(a), where=b > 0), ratio, _PILEUPS)
        return (b / np.interp(pileup, _PILEUPS, self.at[:, 1]))[:, None], pileup[:, None]

    def expected(self, conditions: np.ndarray) -> Expected:
        events, pileup = self._events_and_pileup(conditions)
        found = self._at(events, pileup)
        if self.error is None or self.span is None or not self.error.any():
            return found
        rows = np.flatnonzero((pileup < self.span[0]) | (pileup > self.span[1]))
        if rows.size:
            edge = np.clip(pileup[rows], *self.span)
            moves = sensitivity(1 - found.fired[rows])
            there = sensitivity(1 - np.clip(probability(edge * self.rate), 1 - MOST_SILENCE, _FULLEST))
            share = np.hypot((moves - there) * self.error, moves * _LAW_ERROR * np.log(pileup[rows] / edge) ** 2)
            found.deviation[rows] = np.hypot(found.deviation[rows], WINDOW_FACTOR * share * found.counts[rows])
        return found

    def _at(self, events: np.ndarray, pileup: np.ndarray) -> Expected:
        """Expectation for N and R, (n, 1) each, with the standard deviations of counting alone."""
        fired = np.clip(probability(pileup * self.rate), 1 - MOST_SILENCE, _FULLEST)
        counts = events * self.size * fired
        of_one = np.maximum(self.spread * np.sqrt(self.size * fired * (1 - fired)), ROUNDING * self.size)
        return Expected(counts, np.sqrt(np.maximum(events, ROUNDING)) * of_one, fired)


def conditions_on_grid(size: np.ndarray, rate: np.ndarray, conditions: MeasureConditions) -> np.ndarray:
    """a and b of the reference run's number of events at each pileup of the grid: (600, 2)."""
    return conditions(size * probability(_PILEUPS[:, None] * rate))
