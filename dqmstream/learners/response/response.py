"""How the counts of channels follow a lumisection's events and pileup: two forms, of which the reference run chooses.

`Saturating` is the law that HE depth 1 was measured to follow: of N events a channel fires in a share

    P(R λ) = 1 - (1 + R λ / k)^-k,    k = 4.75,

λ its rate in the reference run, R the pileup relative to it, so that it counts N A P with variance N A P (1 - P). `Quadratic`
knows no law, and goes on as its tangent beyond the pileup of the reference run; it serves what does not follow the first, such
as counts that were scaled. What tells is the other pileup that every later run has: half of the test lumisections of the named
streams lie beyond the reference run's. There the residuals' variance was 2.7 with the quadratic and is 1.01 with the law, and
in the reference run the same (`tests/learners/response/test_reference.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

SHAPE = 4.75
"""k, measured on the two published runs: ring means within 1.5 % over a factor of 12 in pileup."""

MEDIAN_OF_SQUARE = 0.4549
"""Of a standard normal number."""

STEADY = 5e-3
"""A ratio a/b that moves by less than this in the reference run is noise, and teaches no slope."""

ROUNDING = 1e-3
"""A response is never known better than to a per mille: a smaller spread is rounding, or too few lumisections."""

_SILENCE = (1e-3, 1 - 1e-6)
"""The least and the largest share of events without a signal that a scatter can tell: a fuller channel looks full."""

_FULL = 1 - 1e-6
"""Share of events in which a channel fires that the law says at most: beyond it nothing is left to scatter."""

_NEARLY_ALL = (0.01, 0.99)
"""Quantiles of pileup between which conditions count as taught."""

_NEAR, _NARROW, _FAR = 0.05, 1.2, 2.0
"""Conditions are beyond what was taught where they are off by more than 5 %; where the highest pileup that was taught is 1.2
times the lowest at least, the law is known to hold in it and is believed up to a factor of 2."""

_LAW = 0.005
"""Error that the law itself may make of a log-rate, times the square of the logarithm of pileup over what was taught. Where it
was fitted it has the right value and slope. Ring means of the two published runs follow it within 1.5 % over a factor of 12,
which is 3 % of a rate in the dimmest ring."""

_TOGETHER = 30**0.5

_FAILED, _ASTRAY = 0.25, 8.0
"""A channel whose mean count has changed by more than this share, or whose slope is off from that of its ring by more than so
many times what is usual there, teaches no slope."""

_PILEUPS = np.geomspace(0.02, 50, 600)
"""Pileups, relative to the reference run, among which that of a lumisection is read off."""

Conditions = Callable[[np.ndarray], np.ndarray]
"""a and b of lumisections: counts (n, live) to (n, 2), as `Reference` makes them."""


class Expected(NamedTuple):
    """What live channels should count: counts and their deviation, and the probability to fire in an event, all (n, live)."""

    counts: np.ndarray
    deviation: np.ndarray
    fired: np.ndarray

    @property
    def events(self) -> np.ndarray:
        """How many events the counts are of, (n, live)."""
        return self.counts / self.fired


def probability(rate: np.ndarray) -> np.ndarray:
    """P for a rate R λ."""
    return -np.expm1(-SHAPE * np.log1p(rate / SHAPE))


def rate_of(probability: np.ndarray) -> np.ndarray:
    """R λ for a probability P."""
    return SHAPE * np.expm1(-np.log1p(-probability) / SHAPE)


def sensitivity(silence: np.ndarray) -> np.ndarray:
    """d log P / d log (R λ) where a share q of the events gives no signal: k (q - q^(1 + 1/k)) / (1 - q).

    .55 in the dimmest rings of HE and .004 in the brightest, which are full.
    """
    return SHAPE * (silence - silence ** (1 + 1 / SHAPE)) / (1 - silence)


def silence(rate: np.ndarray) -> np.ndarray:
    """Share of events without a signal, 1 - P, for a rate R λ >= 0: a fifth of the time of `probability`, as 4 k is whole."""
    x = 1 + rate / SHAPE
    square = x * x
    return np.asarray(np.sqrt(np.sqrt(x)) / (square * square * x))


class Response(ABC):
    """Expected counts under conditions a and b."""

    kind: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]]
    more: ClassVar[tuple[str, ...]] = ()
    """Arrays that states from before they were kept lack: None then."""

    @abstractmethod
    def expected(self, conditions: np.ndarray) -> Expected:
        """For conditions (n, 2)."""

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        arrays = {name: getattr(self, name) for name in (*self.arrays, *self.more)}
        return {name: array for name, array in arrays.items() if array is not None}

    @abstractmethod
    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        """Whether lumisections are under conditions that were not taught: bool (n,), for conditions (n, 2)."""

    @property
    @abstractmethod
    def taught(self) -> tuple[float, float] | None:
        """Lowest and highest conditions that were taught, relative to the reference run: pileup, or a/b of a quadratic.

        None where it is not known: of a state from before it was kept.
        """


class Quadratic(Response):
    """e = b (w0 + w1 z + w2 z²), z the ratio a/b standardised on the reference run.

    All terms grow with the number of events, as counts do, so that a lumisection cut short to a tenth needs no extrapolation;
    the deviation grows with sqrt(b). profile: mean counts of the reference run, (live,). ratio: mean, deviation, lowest and
    highest a/b of the reference run, (4,). weights: (3, live). spread: deviation of a count at b = 1, (live,). full:
    probability to fire in the reference run, (live,).
    """

    kind = "quadratic"
    arrays = ("profile", "ratio", "weights", "spread", "full")

    def __init__(
        self, profile: np.ndarray, ratio: np.ndarray, weights: np.ndarray, spread: np.ndarray, full: np.ndarray
    ) -> None:
        self.profile, self.ratio, self.weights, self.spread, self.full = profile, ratio, weights, spread, full

    @classmethod
    def fit(
        cls, counts: np.ndarray, conditions: np.ndarray, profile: np.ndarray, ring: np.ndarray
    ) -> tuple[Quadratic, np.ndarray]:
        """By weighted least squares on the reference run's counts (n, live); and the variance that is left over, (live,)."""
        share = conditions[:, 0] / conditions[:, 1]
        moves = share.std() > STEADY * share.mean()
        ratio = np.array([share.mean(), share.std() if moves else np.inf, share.min(), share.max()])
        root_b = np.sqrt(conditions[:, 1:])
        features, target = _features(conditions, ratio) / root_b, counts / root_b
        weights, _, rank, _ = np.linalg.lstsq(features, target, rcond=1e-6)
        left_over = ((target - features @ weights) ** 2).sum(axis=0) / max(len(target) - int(rank), 1)
        spread = np.maximum(np.sqrt(left_over), ROUNDING * profile)
        return cls(profile, ratio, weights, spread, 1 - _silence(spread, profile, ring)), left_over

    def expected(self, conditions: np.ndarray) -> Expected:
        b = conditions[:, 1:]
        counts = np.maximum(_features(conditions, self.ratio) @ self.weights, 0.0)
        share = np.divide(counts, b * self.profile, out=np.zeros_like(counts), where=b > 0)
        fired = np.clip(self.full * share, 1 - _SILENCE[1], 1 - _SILENCE[0])
        deviation = self.spread * np.sqrt(np.maximum(b, ROUNDING))
        rows = np.flatnonzero(self._apart(conditions))
        if rows.size:
            deviation[rows] = np.hypot(deviation[rows], _TOGETHER * self._unsure(conditions[rows]))
        return Expected(counts, deviation, fired)

    def _apart(self, conditions: np.ndarray) -> np.ndarray:
        """By how much a/b is beyond what was taught, (n,); 0 within it, and without light."""
        a, b = conditions[:, 0], conditions[:, 1]
        share = np.divide(a, b, out=np.full_like(a, self.ratio[0]), where=b > 0)
        return np.asarray(share - np.clip(share, self.ratio[2], self.ratio[3]))

    def _unsure(self, conditions: np.ndarray) -> np.ndarray:
        """Error of the counts beyond what was taught: that of the tangent, or where no slope is known all of the change."""
        b, apart = conditions[:, 1:], self._apart(conditions)[:, None]
        if not np.isfinite(self.ratio[1]):
            return np.asarray(b * self.profile * np.abs(apart) / self.ratio[0])
        return np.asarray(b * np.abs(self.weights[2]) * (apart / self.ratio[1]) ** 2)

    @property
    def taught(self) -> tuple[float, float]:
        return float(self.ratio[2] / self.ratio[0]), float(self.ratio[3] / self.ratio[0])

    def after(self, later: Quadratic, ring: np.ndarray) -> Quadratic:
        """This response, which was taught no slope, with those of a later run; what it says under its own conditions stays.

        A channel that failed in the later run takes the slopes of its ring. ring: a number for each ring, (live,).
        """
        mean = self.ratio[0]
        there = later.expected(np.array([[mean, 1.0]])).counts[0]
        share = np.divide(later.weights, there, out=np.zeros_like(later.weights), where=there > 0)
        usual = medians(share, ring)
        off = np.abs(share[1] - usual[1])
        failed = (np.abs(there / self.profile - 1) > _FAILED) | (off > _ASTRAY * medians(off, ring))
        ratio = np.array([*later.ratio[:2], min(self.ratio[2], later.ratio[2]), max(self.ratio[3], later.ratio[3])])
        return Quadratic(self.profile, ratio, self.profile * np.where(failed, usual, share), self.spread, self.full)

    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        return np.abs(self._apart(conditions)) > _NEAR * self.ratio[0]


class Saturating(Response):
    """N A P(R λ): N and R of a lumisection from its a and b, both 1 in the reference run.

    size: A times the number of events of the reference run, (live,). rate: λ, (live,). spread: deviation over that of a count
    of events, (live,). at: a and b of N = 1 at each of the pileups that are tried, (600, 2). error: of log λ, (live,), 0 where
    pileup that moved told the rates: such a law is believed at all pileups. span: lowest and highest pileup that was taught,
    (2,); first_span: by the first run. Without these three, of older states, all pileups count as taught.

    At pileups that were not taught, deviations are wider by what the errors of rates and of the law make of a count. Such an
    error is the same in lumisections that follow each other, so it counts sqrt(30) times, as in a window of 30.
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
        cls, counts: np.ndarray, at: np.ndarray, conditions: Conditions, quadratic: Quadratic, ring: np.ndarray
    ) -> tuple[Saturating, np.ndarray]:
        """On the reference run's counts (n, live) and conditions (n, 2); and the variance left over at b = 1, (live,).

        Rates begin from how much less than a Poisson count the channels of a ring scatter, as the quadratic found it, and
        are then moved, each ring by one factor, to where the means follow pileup as they do. Single channels are not moved
        by their own slopes: over 200 lumisections these are noise.
        """
        profile, full = quadratic.profile, quadratic.full
        rate = rate_of(np.minimum(profile / (medians(profile, ring) / full), 1 - _SILENCE[0]))
        size = profile / probability(rate)
        for _ in range(4):
            law = cls(size, rate, np.ones_like(rate), table(size, rate, conditions))
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
        law = cls(size, rate, np.ones_like(rate), table(size, rate, conditions))
        left = law.settle(counts, at)
        law.error = np.zeros_like(rate)
        law.span = law.first_span = law.span_of(at)
        return law, left

    def settle(self, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Set the spread by lumisections, counts (n, live) under conditions (n, 2); returns the variance left over at b = 1."""
        self.spread = np.ones_like(self.rate)
        expected, deviation, _ = self._at(*self._light(at))
        left = (counts - expected) ** 2
        freedom = len(counts) / max(len(counts) - 2, 1)
        self.spread = np.sqrt((left / deviation**2).mean(axis=0) * freedom)
        return np.asarray((left / at[:, 1:]).mean(axis=0) * freedom)

    def counting(self, at: np.ndarray) -> np.ndarray:
        """Mean variance of counts of events at b = 1 under conditions (n, 2), (live,)."""
        fired = probability(self._light(at)[1] * self.rate)
        return np.asarray((self.size * fired * (1 - fired)).mean(axis=0))

    def span_of(self, at: np.ndarray) -> np.ndarray:
        """Pileups between which nearly all of lumisections lie, by conditions (n, 2): lowest and highest, (2,)."""
        return np.quantile(self._light(at)[1], _NEARLY_ALL)

    @property
    def open(self) -> bool:
        """Whether later runs may teach it: the first run's pileup was too level for what it should tell."""
        return self.first_span is not None and bool(self.first_span[1] <= _NARROW * self.first_span[0])

    @property
    def told_apart(self) -> bool:
        """Whether pileups from half to twice the reference run's are told apart by a/b."""
        near = np.searchsorted(_PILEUPS, (0.5, 2.0))
        return bool((np.diff((self.at[:, 0] / self.at[:, 1])[slice(*near)]) > 0).all())

    @property
    def taught(self) -> tuple[float, float] | None:
        return None if self.span is None else (float(self.span[0]), float(self.span[1]))

    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        pileup = self._light(conditions)[1][:, 0]
        if self.span is None:
            return np.zeros(len(pileup), dtype=bool)
        low, high = self.span
        factor = _FAR if high > _NARROW * low else 1 + _NEAR
        return np.asarray((pileup < low / factor) | (pileup > high * factor))

    def _light(self, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N and R of lumisections, relative to the reference run: both (n, 1)."""
        a, b = conditions[:, 0], conditions[:, 1]
        ratio = np.maximum.accumulate(self.at[:, 0] / self.at[:, 1])
        pileup = np.interp(np.divide(a, b, out=np.ones_like(a), where=b > 0), ratio, _PILEUPS)
        return (b / np.interp(pileup, _PILEUPS, self.at[:, 1]))[:, None], pileup[:, None]

    def expected(self, conditions: np.ndarray) -> Expected:
        light, pileup = self._light(conditions)
        found = self._at(light, pileup)
        if self.error is None or self.span is None or not self.error.any():
            return found
        rows = np.flatnonzero((pileup < self.span[0]) | (pileup > self.span[1]))
        if rows.size:
            edge = np.clip(pileup[rows], *self.span)
            moves = sensitivity(1 - found.fired[rows])
            there = sensitivity(1 - np.clip(probability(edge * self.rate), 1 - _SILENCE[1], _FULL))
            share = np.hypot((moves - there) * self.error, moves * _LAW * np.log(pileup[rows] / edge) ** 2)
            found.deviation[rows] = np.hypot(found.deviation[rows], _TOGETHER * share * found.counts[rows])
        return found

    def _at(self, light: np.ndarray, pileup: np.ndarray) -> Expected:
        """What is expected of N and R, (n, 1) both, with the deviations of counting alone."""
        fired = np.clip(probability(pileup * self.rate), 1 - _SILENCE[1], _FULL)
        counts = light * self.size * fired
        of_one = np.maximum(self.spread * np.sqrt(self.size * fired * (1 - fired)), ROUNDING * self.size)
        return Expected(counts, np.sqrt(np.maximum(light, ROUNDING)) * of_one, fired)


KINDS: tuple[type[Saturating] | type[Quadratic], ...] = (Saturating, Quadratic)


def medians(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The median over the last axis within each group 0, 1, ..., at the places of its members."""
    return of_each(values, group)[..., group]


def of_each(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The median over the last axis within each group 0, 1, ..., one number a group: (..., groups)."""
    return np.stack([np.median(values[..., group == number], axis=-1) for number in range(group.max() + 1)], axis=-1)


def _silence(spread: np.ndarray, profile: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Share of the events of the reference run in which a channel gives no signal, the same in each ring.

    A count of N events has mean N p and variance N p (1 - p), so that their quotient needs no N.
    """
    return np.clip(medians(spread**2 / profile, ring), *_SILENCE)


def table(size: np.ndarray, rate: np.ndarray, conditions: Conditions) -> np.ndarray:
    """a and b of the events of the reference run at each of the pileups that are tried."""
    return conditions(size * probability(_PILEUPS[:, None] * rate))


def _features(conditions: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """b, b z and b z² of conditions (n, 2): shape (n, 3). Beyond the reference run's own range z² goes on as its tangent."""
    mean, deviation, low, high = ratio
    a, b = conditions[:, 0], conditions[:, 1]
    # Without light there is no ratio; b = 0 makes every term zero whatever z is.
    share = np.divide(a, b, out=np.full_like(a, mean), where=b > 0)
    z = (share - mean) / deviation
    inside = (np.clip(share, low, high) - mean) / deviation
    return np.stack([b, b * z, b * inside * (2 * z - inside)], axis=1)
