"""Two runs compared where their conditions differ, or do not move: what channels of one ring have in common is luminosity's.

Both runs give a channel's share p of events with a count over the whole run. On the scale

    x = log rate = log(k ((1 - p)**(-1/k) - 1)),    k = 4.75

a change of pileup adds the same number to all channels that follow one law, whatever their gain. Channels of a ring (|ieta|,
depth) are therefore expected in run B at

    y = x + D + b (x - X),

X and D the medians of x and y - x in the ring, b the slope of D with X over all rings, which is 0 where the law holds. How far
rings lie from a common line, s, says how well it holds: a channel that stands apart from its ring is expected with an error of
sqrt(s² + b²/4) for each unit of x - X. The error of a difference holds this, the counting noise of both runs, and the scatter
of the ring's channels (its median, which a few changed channels do not move).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.compare.conditions import Channels, Sample
from dqmstream.experiments.compare.response import Estimate, moderate
from dqmstream.experiments.compare.separation import spread_of

K = 4.75
"""Shape of the response, measured on two published runs; where it is wrong, b and s are not 0."""

RING_CHANNELS = 8
"""A ring of fewer channels that can be compared gives no median."""

ENOUGH = 50
"""Fewer counts, or fewer events without one, than this are no sample for a normal test in x, which is skew."""

MOST_OF_RING = 0.75
"""Share of a ring's channels that must tell something in both runs."""

WORTH = 0.37
"""Degrees of freedom of a median of absolute deviations for each number in it (Huber, Robust Statistics, 1981, sec. 5.1)."""

SEES = np.log(2) / 3
"""A channel with a larger error in x is not tested: three deviations would not see its rate halved."""

DARK, SILENT = 0.1, 0.01
"""Parts of its ring's median. A channel that no response can be given for is dead if it counts less than SILENT in a run, and
more than DARK in the other."""

_SURE = 0.05
"""Error of h for such a channel."""

_BLOCKS = 20
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Across:
    """estimate: h of each channel in counts under the conditions of run B, with error inf where nothing can be said.

    sensitivity: how much of a change of gain h shows, (live,), in units of the largest.
    """

    estimate: Estimate
    sensitivity: np.ndarray


@dataclass(frozen=True, eq=False)
class _Whole:
    """A run as a whole. counts: (live,). events: their number, or an estimate. noise: variance of a count over N p (1 - p).

    dof: of noise, (live,).
    """

    counts: np.ndarray
    events: float
    noise: np.ndarray
    dof: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """Logarithm of the rate, (live,); half a count is added, so that it is finite."""
        return log_rate((np.minimum(self.counts, self.events) + 0.5) / (self.events + 1))

    @property
    def informative(self) -> np.ndarray:
        """Channels whose counts and events without a count are many, and five of their deviations at least, (live,)."""
        p = np.clip(self.counts / self.events, 0.0, 1.0)
        least = np.maximum(ENOUGH, 5 * np.sqrt(self.noise * self.events * p * (1 - p)))
        return np.asarray((self.counts >= least) & (self.events - self.counts >= least))

    def error(self, x: np.ndarray) -> np.ndarray:
        """Counting error of x, (live,), in channels of that x."""
        p = np.clip(fires(x), 1 / (self.events + 1), self.events / (self.events + 1))
        return np.asarray(np.sqrt(self.noise * p * (1 - p) / self.events) / _slope(p))


def log_rate(p: np.ndarray) -> np.ndarray:
    """x of the probability to fire in an event."""
    return np.asarray(np.log(K * np.expm1(-np.log1p(-p) / K)))


def fires(x: np.ndarray) -> np.ndarray:
    """The probability to fire in an event at x."""
    return np.asarray(-np.expm1(-K * np.log1p(np.exp(x) / K)))


def _slope(p: np.ndarray) -> np.ndarray:
    """dp/dx."""
    return np.asarray(K * (1 - p) * -np.expm1(np.log1p(-p) / K))


def compare_across(a: Sample, b: Sample, channels: Channels, counts_events: bool) -> Across:
    """Compare two runs as wholes, each channel with its ring."""
    ring = np.abs(channels.ieta) * 8 + channels.depth
    first, second = (_whole(sample, ring, counts_events) for sample in (a, b))
    forth = _differences(first, second, ring)
    back = _differences(second, first, ring)
    # A channel that is too dark or too bright in A to say what B should have may still say it from B to A.
    reverse = ~np.isfinite(forth.error) & np.isfinite(back.error)
    h = np.where(reverse, -back.h, forth.h)
    error = np.where(reverse, back.error, forth.error)
    dof = np.where(reverse, back.dof, forth.dof)
    for sign, lost, had in ((-1.0, second, first), (1.0, first, second)):
        stands = [_stand(one.counts, ring) for one in (lost, had)]
        gone = ~np.isfinite(error) & (stands[0] < SILENT) & (stands[1] > DARK) & (had.counts >= ENOUGH)
        h[gone], error[gone], dof[gone] = sign, _SURE, np.inf
    p = np.clip(second.counts / second.events, 1e-3, 1 - 1e-6)
    sensitivity = np.clip(_slope(p) / p, 1e-3, None)
    sensitivity = np.clip(sensitivity / np.quantile(sensitivity, 0.95), 0.05, 1.0)
    return Across(Estimate(h, error, dof), sensitivity)


def _whole(sample: Sample, ring: np.ndarray, counts_events: bool) -> _Whole:
    """Sums of a run, and how much more its counts vary than chance, whatever moves all channels of a ring."""
    blocks = np.arange(len(sample)) * min(_BLOCKS, len(sample)) // len(sample)
    table = np.zeros((int(blocks[-1]) + 1, sample.counts.shape[1]))
    for rows, counts in sample.parts():
        np.add.at(table, blocks[rows], counts)
    total = table.sum(axis=0)
    events = float(sample.events.sum()) if counts_events else _events(total)
    p = np.clip(total / events, 1 / (events + 1), events / (events + 1))
    expected = np.empty_like(table)
    for one in np.unique(ring):
        mine = ring == one
        together = table[:, mine].sum(axis=1)
        expected[:, mine] = np.outer(together / max(float(together.sum()), 1.0), total[mine])
    dof = max(len(table) - 1, 1)
    own = ((table - expected) ** 2).sum(axis=0) * (len(table) / dof)
    chance = events * p * (1 - p)
    if not counts_events:
        # The brightest channels seem to miss fewer events than they do, and so to be surer: their ring knows better.
        for one in np.unique(ring):
            mine = ring == one
            chance[mine] = np.maximum(chance[mine], np.median(own[mine]))
    noise, degrees = np.ones_like(total), np.full(total.shape, np.inf)
    varying = (total >= ENOUGH) & (events - total >= ENOUGH)
    if len(table) > 2 and varying.sum() > RING_CHANNELS:
        noise[varying], degrees[varying] = moderate(own[varying] / chance[varying], dof)
    # A channel never varies less than by chance, whatever a few blocks say.
    return _Whole(total, events, np.maximum(noise, 1.0) * chance / (events * p * (1 - p)), degrees)


def _events(total: np.ndarray) -> float:
    """The number of events where it is unknown: what the brightest channel counts, unless it stands out of the others."""
    high, most = float(np.quantile(total, 0.99)), float(total.max())
    return max(most if most <= 1.2 * high else high, 1.0)


def _stand(counts: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Counts over the median of the ring."""
    out = np.zeros_like(counts)
    for one in np.unique(ring):
        mine = ring == one
        out[mine] = counts[mine] / max(float(np.median(counts[mine])), 1.0)
    return out


def _differences(first: _Whole, second: _Whole, ring: np.ndarray) -> Estimate:
    """h of the second run against what the first one and the ring say; error inf where they say nothing."""
    x, y = first.x, second.x
    groups = _rings(first, second, ring)
    h, error, dof = np.zeros_like(x), np.full(x.shape, np.inf), np.ones_like(x)
    if not groups:
        return Estimate(h, error, dof)
    noise = np.hypot(first.error(x), second.error(y))
    middle = np.array([np.median(x[group]) for group in groups])
    shift = np.array([np.median((y - x)[group]) for group in groups])
    scatters = np.array([np.sqrt(spread_of((y - x - s)[g], noise[g])) for g, s in zip(groups, shift, strict=True)])
    unsure = np.array(
        [1.2533 * np.sqrt(np.median(noise[g] ** 2) + t**2) / np.sqrt(len(g)) for g, t in zip(groups, scatters, strict=True)]
    )
    slope, apart = _law(middle, shift, unsure)
    law_error = np.hypot(apart, slope / 2)
    for number, group in enumerate(groups):
        mine = np.flatnonzero(ring == ring[group[0]])
        stands = x[mine] - middle[number]
        expected = x[mine] + shift[number] + slope * stands
        beyond = y[mine] - expected
        close = np.isin(mine, group) & (np.abs(stands) < 3 * 1.4826 * np.median(np.abs(x[group] - middle[number])) + 1e-6)
        total = np.sqrt(((1 + slope) * first.error(x)[mine]) ** 2 + _at(second, expected, mine) ** 2 + unsure[number] ** 2)
        total = np.hypot(total, law_error * stands)
        scatter = spread_of(beyond[close], total[close]) if close.any() else 0.0
        total = np.sqrt(total**2 + scatter)
        would, does = fires(expected), fires(y[mine])
        told = first.informative[mine] & (second.events * would >= ENOUGH) & (second.events * (1 - would) >= ENOUGH)
        told &= total < SEES
        half = (does - would) / (does + would)
        half = np.where(second.counts[mine] == 0, -1.0, half)
        pull = np.where(np.abs(beyond) > 1e-12, beyond / total, 0.0)
        # h is in counts and its pull in x, where the errors are known.
        scale = np.where(pull != 0, half / np.where(pull != 0, pull, 1.0), total * _slope(would) / (2 * would))
        h[mine] = half
        error[mine] = np.where(told, np.maximum(np.abs(scale), np.finfo(float).tiny), np.inf)
        dof[mine] = np.minimum(np.minimum(first.dof, second.dof)[mine], max(WORTH * len(group), 1.0))
    return Estimate(h, error, dof)


def _rings(first: _Whole, second: _Whole, ring: np.ndarray) -> list[np.ndarray]:
    """Of each ring that can be compared the channels that tell something in both runs.

    They are most of the ring: else the ring is seen only where chance made its channels count more, or less.
    """
    both = first.informative & second.informative
    counting = (first.counts >= ENOUGH) & (second.counts >= ENOUGH)
    groups = [(np.flatnonzero((ring == one) & both), int(((ring == one) & counting).sum())) for one in np.unique(ring)]
    return [group for group, of in groups if len(group) >= max(RING_CHANNELS, MOST_OF_RING * of)]


def _at(run: _Whole, x: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Counting error of some of a run's channels where they are expected at x."""
    return _Whole(run.counts[channels], run.events, run.noise[channels], run.dof[channels]).error(x)


def _law(middle: np.ndarray, shift: np.ndarray, unsure: np.ndarray) -> tuple[float, float]:
    """Slope of the rings' shifts with their x, and the deviation of a ring from that line."""
    if len(middle) < 3:
        return 0.0, float(np.sqrt(max(np.var(shift) - np.mean(unsure**2), 0.0)))
    slope, offset, apart = 0.0, float(np.median(shift)), 0.0
    for _ in range(_ROUNDS):
        deviation = np.sqrt(unsure**2 + apart)
        pull = np.abs(shift - offset - slope * middle) / deviation
        weight = np.sqrt(1 / np.maximum(pull / 1.345, 1.0)) / deviation
        design = np.stack([middle, np.ones_like(middle)], axis=1) * weight[:, None]
        slope, offset = (float(one) for one in np.linalg.lstsq(design, shift * weight, rcond=None)[0])
        apart = spread_of(shift - offset - slope * middle, unsure)
    return slope, float(np.sqrt(apart))
