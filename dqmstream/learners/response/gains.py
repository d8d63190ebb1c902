"""The gains of a run's channels, and their course over runs.

A gain d is a relative change of a channel's rate: N events count N A P(R λ (1 + d)) instead of N A P(R λ) (`response.law`).

Within a run, gains are fitted by least squares. Over runs, log(1 + d) is smoothed as a random walk (Kalman, J. Basic Eng. 82
(1960) 35; Rauch, Tung and Striebel, AIAA J. 3 (1965) 1445). The step of the walk is estimated for each ring from the runs
themselves: without drift all runs are averaged, and where every run differs from the next nothing is. A channel that jumps
starts anew; a dead one is left as measured.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.conditions import DEAD
from dqmstream.learners.response.law import rate_of
from dqmstream.learners.response.observation import Observation
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE

GAIN_PRIOR = 0.1
"""Standard deviation of the prior of a gain, around 0. It decides for full channels, whose counts say nothing of the rate."""

LEAST_ERROR = 1e-4
"""Smallest error of a gain, however many counts there are."""

MOST = 9.0
"""Largest gain."""

JUMP = 4.0
"""Standard deviations between a gain and its prediction from the run before, from which the walk starts anew."""

_ROUNDS = 4
"""Steps of the fit."""

_WORSE = 1.05
"""A step is rejected if it raises the sum of squares above this multiple of the lowest so far. Otherwise a channel that counts
more than there were events would be driven to a rate at which counts do not scatter, which makes its run look impossible. It
is above 1, since deviations depend on the gain (docs/decisions/2026-11-29-closed-forms.md)."""

_FAR = 0.2
"""Difference between the starting value and the gain by the total count from which the latter is tried as a start too."""

_FULLEST = 1 - 1e-4
"""Largest probability to fire that is converted to a rate."""

_LAGS = (1, 2, 4, 8, 16, 32)
"""Distances in runs over which the step of the walk is estimated."""

_PAIRS = 64
"""Most pairs of runs that are used at each distance."""

_INSIGNIFICANT = 5.4
"""Two standard errors of the median of n squares of normal numbers, relative to it, times sqrt(n)."""


def fit_gains(observed: Observation, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains of a run's channels and their errors, (live,) each, from all its lumisections. first: starting values, (live,).

    Gauss-Newton least squares, each channel by itself, with the deviations expected for its gain.
    """
    gain, other = first, _by_total_count(observed, first)
    found = _squares(observed, gain)
    if (other != first).any():
        there = _squares(observed, other)
        better = there[2] < found[2]
        gain, found = np.where(better, other, gain), np.where(better, there, found)
    least, share = found[2], np.ones_like(gain)
    for _ in range(_ROUNDS):
        information, onto, _ = found
        moved = np.clip(gain + share * onto / information, -1.0, MOST)
        there = _squares(observed, moved)
        taken = there[2] <= _WORSE * least
        gain, found = np.where(taken, moved, gain), np.where(taken, there, found)
        least, share = np.minimum(least, found[2]), np.where(taken, 1.0, 0.25 * share)
    return gain, np.sqrt(1 / found[0] + LEAST_ERROR**2)


def _squares(observed: Observation, gain: np.ndarray) -> np.ndarray:
    """At gains (live,): inverse variance, downhill gradient / 2, and sum of squares, each with the prior: (3, live)."""
    slope, left = _at(observed, gain)
    prior = 1 / GAIN_PRIOR**2
    known = (slope**2).sum(axis=0) + prior
    return np.stack([known, (slope * left).sum(axis=0) - prior * gain, (left**2).sum(axis=0) + prior * gain**2])


def _by_total_count(observed: Observation, first: np.ndarray) -> np.ndarray:
    """The starting values; where the total count gives a very different gain, that gain."""
    full, counts = observed.deviation * observed.full, observed.deviation * (observed.residual + observed.leverage)
    events = np.maximum(full.sum(axis=0), np.finfo(np.float64).tiny)
    share, usual = counts.sum(axis=0) / events, (full * (1 - observed.quiet)).sum(axis=0) / events
    by_all = rate_of(np.clip(share, 0.0, _FULLEST)) / rate_of(np.clip(usual, 1 - _FULLEST, _FULLEST)) - 1
    return np.where(np.abs(by_all - first) > _FAR, np.clip(by_all, -1.0, MOST), first)


def _at(observed: Observation, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivative of the expected counts by the gain, and residuals, both in deviations, (n, live)."""
    under = observed.under(gain)
    return observed.rate * under.per_rate, under.residual


def smooth_gains(gains: np.ndarray, errors: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Gains of consecutive runs, smoothed over the runs: (runs, live).

    gains, errors: as measured in each run, (runs, live). ring: number of each channel's ring, (live,).
    """
    if len(gains) == 1:
        return gains
    counts = gains > DEAD
    inside = np.maximum(gains, DEAD)
    level, variance = np.log1p(inside), (errors / (1 + inside)) ** 2
    step = _step(level, variance, ring)
    mean, spread = np.empty_like(level), np.empty_like(level)
    mean[0], spread[0] = level[0], np.where(counts[0], variance[0], 1.0)
    jumps = np.zeros(level.shape, dtype=bool)
    for now in range(1, len(gains)):
        before = spread[now - 1] + step
        off, total = level[now] - mean[now - 1], before + variance[now]
        jumps[now] = counts[now] & (off**2 > JUMP**2 * total)
        weight = np.where(jumps[now], 1.0, np.where(counts[now], before / total, 0.0))
        mean[now] = mean[now - 1] + weight * off
        spread[now] = np.where(jumps[now], variance[now], (1 - weight) * before)
    share = np.where(jumps[1:], 0.0, spread[:-1] / (spread[:-1] + step))
    for now in range(len(gains) - 2, -1, -1):
        mean[now] += share[now] * (mean[now + 1] - mean[now])
    return np.where(counts, np.expm1(mean), gains)


def _step(level: np.ndarray, variance: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Variance of the step from run to run, one value a ring at the places of its channels, (live,).

    The largest estimate over several distances between runs: a slow walk shows between distant runs, independent changes
    show between neighbours. Medians over the ring make single jumps harmless.
    """
    order, sizes = np.argsort(ring, kind="stable"), np.bincount(ring)
    ends = np.cumsum(sizes)
    walked = np.zeros(len(sizes))
    for lag in (lag for lag in _LAGS if lag < len(level)):
        every = 1 + (len(level) - lag) // _PAIRS
        here, there = slice(0, len(level) - lag, every), slice(lag, None, every)
        # Channels of a ring side by side, in float32: precise enough for a median, and twice as fast.
        both = (variance[there] + variance[here]).astype(np.float32)[:, order]
        square = (level[there] - level[here]).astype(np.float32)[:, order] ** 2 / both
        for number, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            members = slice(end - size, end)
            of_ring = square[:, members]
            over = _median(of_ring) / MEDIAN_OF_SQUARE - 1 - _INSIGNIFICANT / np.sqrt(of_ring.size)
            if over > 0:
                walked[number] = max(walked[number], over * _median(both[:, members]) / lag)
    return walked[ring]


def _median(values: np.ndarray) -> float:
    """Median of all values; for a few thousand, three times as fast as NumPy's."""
    middle = values.size // 2
    parted = np.partition(values, middle, axis=None)
    return float(parted[middle] if values.size % 2 else (parted[middle] + parted[:middle].max()) / 2)
