"""Two runs compared by rings, for runs that share no conditions, or whose conditions do not move.

Each run is taken as a whole: a channel's share p of events with a count. On the scale

    x = log rate = log(k ((1 - p)**(-1/k) - 1)),    k = 4.75

a change of pileup adds the same number to all channels that follow this law, whatever their gain. So channels of a ring
(|ieta|, depth) are expected in run B at

    y = x + D + b (x - X),

X and D the medians over the ring of x and of y - x, b the slope of D with X over all rings; b is 0 if the law holds. The
scatter s of the rings about that line says how well it holds: the expectation of a channel that stands apart from its ring has
an error of sqrt(s² + b²/4) for each unit of x - X. The error of a difference combines this, the counting noise of both runs,
and the scatter of the ring's channels (a median, which a few changed channels do not move).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.compare.estimate import Estimate, moderate, spread_of
from dqmstream.experiments.compare.samples import Channels, Sample

K = 4.75
"""Shape of the response, measured on two published runs. Where it is wrong, b and s are not 0."""

MIN_RING_CHANNELS = 8
"""Comparable channels that a ring needs for its median."""

MIN_COUNTS_OF_LOG = 50
"""Counts, and events without a count, that a channel needs for a normal test in x, which is skew."""

MIN_RING_FRACTION = 0.75
"""Share of a ring's channels that must be informative in both runs."""

MEDIAN_DOF = 0.37
"""Degrees of freedom that each number in a median of absolute deviations adds (Huber, Robust Statistics, 1981, sec. 5.1)."""

MAX_ERROR = np.log(2) / 3
"""A channel with a larger error in x is not tested: a rate cut by half would be less than three deviations."""

ALIVE, SILENT = 0.1, 0.01
"""In units of its ring's median. A channel that cannot be tested has died if it counts less than SILENT in a run and more than
ALIVE in the other."""

_SILENT_ERROR = 0.05
"""Error of h = ±1 for such a channel."""

_BLOCKS = 20
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class RingDifferences:
    """The differences of all channels from what their rings do.

    estimate: h of each channel in counts under the conditions of run B. sensitivity: change of h with a change of gain,
    (live,), in units of the largest.
    """

    estimate: Estimate
    sensitivity: np.ndarray


@dataclass(frozen=True, eq=False)
class _WholeRun:
    """A run summed over its lumisections.

    counts: (live,). events: their number, or an estimate of it. noise: variance of a count over N p (1 - p), (live,), with
    `dof` degrees of freedom, (live,).
    """

    counts: np.ndarray
    events: float
    noise: np.ndarray
    dof: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """Logarithm of the rate, (live,). Half a count is added to keep it finite."""
        return log_rate((np.minimum(self.counts, self.events) + 0.5) / (self.events + 1))

    @property
    def informative(self) -> np.ndarray:
        """Channels with enough counts and enough events without one, both at least five of their deviations: bool, (live,)."""
        p = np.clip(self.counts / self.events, 0.0, 1.0)
        least = np.maximum(MIN_COUNTS_OF_LOG, 5 * np.sqrt(self.noise * self.events * p * (1 - p)))
        return np.asarray((self.counts >= least) & (self.events - self.counts >= least))

    def error(self, x: np.ndarray) -> np.ndarray:
        """Counting error of x, (live,), if the channels were at x."""
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


def compare_within_rings(a: Sample, b: Sample, channels: Channels, counts_events: bool) -> RingDifferences:
    """Compare each channel of run B with what run A and its ring predict."""
    ring = np.abs(channels.ieta) * 8 + channels.depth
    first, second = (_whole(sample, ring, counts_events) for sample in (a, b))
    forth = _differences(first, second, ring)
    back = _differences(second, first, ring)
    # A channel that is too dark or too bright in A to predict B may still be predicted in A from B.
    reverse = ~np.isfinite(forth.error) & np.isfinite(back.error)
    h = np.where(reverse, -back.h, forth.h)
    error = np.where(reverse, back.error, forth.error)
    dof = np.where(reverse, back.dof, forth.dof)
    for sign, lost, had in ((-1.0, second, first), (1.0, first, second)):
        stands = [_over_ring(one.counts, ring) for one in (lost, had)]
        gone = ~np.isfinite(error) & (stands[0] < SILENT) & (stands[1] > ALIVE) & (had.counts >= MIN_COUNTS_OF_LOG)
        h[gone], error[gone], dof[gone] = sign, _SILENT_ERROR, np.inf
    p = np.clip(second.counts / second.events, 1e-3, 1 - 1e-6)
    sensitivity = np.clip(_slope(p) / p, 1e-3, None)
    sensitivity = np.clip(sensitivity / np.quantile(sensitivity, 0.95), 0.05, 1.0)
    return RingDifferences(Estimate(h, error, dof), sensitivity)


def _whole(sample: Sample, ring: np.ndarray, counts_events: bool) -> _WholeRun:
    """Sum a run, and measure how much more its counts vary than chance, beyond what all channels of a ring share."""
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
        # With estimated events the brightest channels seem to miss too few of them, and their errors to be too small.
        for one in np.unique(ring):
            mine = ring == one
            chance[mine] = np.maximum(chance[mine], np.median(own[mine]))
    noise, degrees = np.ones_like(total), np.full(total.shape, np.inf)
    varying = (total >= MIN_COUNTS_OF_LOG) & (events - total >= MIN_COUNTS_OF_LOG)
    if len(table) > 2 and varying.sum() > MIN_RING_CHANNELS:
        noise[varying], degrees[varying] = moderate(own[varying] / chance[varying], dof)
    # No channel varies less than by chance; a few blocks may seem to.
    return _WholeRun(total, events, np.maximum(noise, 1.0) * chance / (events * p * (1 - p)), degrees)


def _events(total: np.ndarray) -> float:
    """Estimate an unknown number of events: the counts of the brightest channel, unless it stands out from the others."""
    high, most = float(np.quantile(total, 0.99)), float(total.max())
    return max(most if most <= 1.2 * high else high, 1.0)


def _over_ring(counts: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Counts of each channel over the median of its ring, (live,)."""
    out = np.zeros_like(counts)
    for one in np.unique(ring):
        mine = ring == one
        out[mine] = counts[mine] / max(float(np.median(counts[mine])), 1.0)
    return out


def _differences(first: _WholeRun, second: _WholeRun, ring: np.ndarray) -> Estimate:
    """h of the second run against the prediction from the first run and the ring; error inf where there is none."""
    h, error, dof = np.zeros_like(first.x), np.full(first.x.shape, np.inf), np.ones_like(first.x)
    shifts = _ring_shifts(first, second, ring)
    if not shifts:
        return Estimate(h, error, dof)
    slope, scatter = _law(*(np.array([getattr(one, name) for one in shifts]) for name in ("middle", "shift", "error")))
    law_error = float(np.hypot(scatter, slope / 2))
    for one in shifts:
        mine = np.flatnonzero(ring == ring[one.group[0]])
        h[mine], error[mine] = _from_ring(first, second, mine, one, slope, law_error)
        dof[mine] = np.minimum(np.minimum(first.dof, second.dof)[mine], max(MEDIAN_DOF * len(one.group), 1.0))
    return Estimate(h, error, dof)


@dataclass(frozen=True, eq=False)
class _RingShift:
    """A ring that can be compared.

    group: its informative channels. middle: median of their x in the first run. shift, error: median of y - x, and its error.
    """

    group: np.ndarray
    middle: float
    shift: float
    error: float


def _ring_shifts(first: _WholeRun, second: _WholeRun, ring: np.ndarray) -> list[_RingShift]:
    x, y = first.x, second.x
    noise = np.hypot(first.error(x), second.error(y))
    shifts = []
    for group in _rings(first, second, ring):
        shift = float(np.median((y - x)[group]))
        scatter = np.sqrt(spread_of((y - x - shift)[group], noise[group]))
        error = float(1.2533 * np.sqrt(np.median(noise[group] ** 2) + scatter**2) / np.sqrt(len(group)))
        shifts.append(_RingShift(group, float(np.median(x[group])), shift, error))
    return shifts


def _from_ring(
    first: _WholeRun, second: _WholeRun, mine: np.ndarray, ring: _RingShift, slope: float, law_error: float
) -> tuple[np.ndarray, np.ndarray]:
    """h of all channels of a ring, with its error, inf where a channel cannot be tested. mine: their positions."""
    x, y = first.x, second.x
    offset = x[mine] - ring.middle
    expected = x[mine] + ring.shift + slope * offset
    excess = y[mine] - expected
    near = np.abs(offset) < 3 * 1.4826 * np.median(np.abs(x[ring.group] - ring.middle)) + 1e-6
    near &= np.isin(mine, ring.group)
    counting = ((1 + slope) * first.error(x)[mine]) ** 2 + _error_at(second, expected, mine) ** 2
    total = np.hypot(np.sqrt(counting + ring.error**2), law_error * offset)
    scatter = spread_of(excess[near], total[near]) if near.any() else 0.0
    total = np.sqrt(total**2 + scatter)
    p_expected, p_measured = fires(expected), fires(y[mine])
    testable = first.informative[mine] & (total < MAX_ERROR)
    testable &= (second.events * p_expected >= MIN_COUNTS_OF_LOG) & (second.events * (1 - p_expected) >= MIN_COUNTS_OF_LOG)
    half = (p_measured - p_expected) / (p_measured + p_expected)
    half = np.where(second.counts[mine] == 0, -1.0, half)
    pull = np.where(np.abs(excess) > 1e-12, excess / total, 0.0)
    # h is a difference of counts; its pull is taken in x, where the errors are known.
    scale = np.where(pull != 0, half / np.where(pull != 0, pull, 1.0), total * _slope(p_expected) / (2 * p_expected))
    return half, np.where(testable, np.maximum(np.abs(scale), np.finfo(float).tiny), np.inf)


def _rings(first: _WholeRun, second: _WholeRun, ring: np.ndarray) -> list[np.ndarray]:
    """The informative channels of each ring that can be compared.

    They must be most of the ring: else only channels that count more by chance would stand for it.
    """
    both = first.informative & second.informative
    counting = (first.counts >= MIN_COUNTS_OF_LOG) & (second.counts >= MIN_COUNTS_OF_LOG)
    groups = [(np.flatnonzero((ring == one) & both), int(((ring == one) & counting).sum())) for one in np.unique(ring)]
    return [group for group, of in groups if len(group) >= max(MIN_RING_CHANNELS, MIN_RING_FRACTION * of)]


def _error_at(run: _WholeRun, x: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Counting error of some channels of a run, expected at x."""
    return _WholeRun(run.counts[channels], run.events, run.noise[channels], run.dof[channels]).error(x)


def _law(middle: np.ndarray, shift: np.ndarray, unsure: np.ndarray) -> tuple[float, float]:
    """Slope of the rings' shifts with their x, and the scatter of rings about that line."""
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
