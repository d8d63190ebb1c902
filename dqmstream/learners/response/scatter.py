"""The rates of the law from the scatter of counts, at nearly constant pileup.

A channel that fires with probability p in each of N events counts N p on average, with variance N p (1 - p). The channels of a
ring share 1 - p = variance / mean; this gives the number of events, mean / p, and from it the p of each single channel.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.base import MeasureConditions
from dqmstream.learners.response.law import SHAPE, probability, rate_of
from dqmstream.learners.response.rings import medians
from dqmstream.learners.response.saturating import Saturating, conditions_on_grid

FEWEST_LUMISECTIONS = 30
"""Lumisections that a fit of rates needs."""

RATE_SPREAD = 0.1
"""Expected standard deviation of log-rates within a ring: the prior for channels whose own counts say little."""

_SAME_EVENTS = 0.05
"""Largest difference between rings in the logarithm of the number of events found. A larger one means that the counts are not
counts of the same events (they were scaled, say), and that their scatter fixes no rate."""

_MOST = 0.8
"""Share of channels that must pass these checks."""

_FEW_MISSES = 20.0
"""Missed events of a channel, summed over lumisections, up to which it always enters the mean of its ring."""

_LEAST_SILENCE, _MOST_SILENCE = 1e-7, 1 - 1e-3


def law_from_scatter(counts: np.ndarray, at: np.ndarray, conditions: MeasureConditions, ring: np.ndarray) -> Saturating | None:
    """The law by the scatter of counts (n, live) under conditions (n, 2); None where they do not scatter as events do.

    Only the lumisections of the steadiest pileup are used. ring: number of each channel's ring, (live,).
    """
    rows = _steadiest(at)
    n, b = len(rows), at[rows, 1:]
    mean = counts[rows].sum(axis=0) / b.sum()
    if (mean <= 0).any():
        return None
    variance = ((counts[rows] - b * mean) ** 2 / b).sum(axis=0) / (n - 1)
    size_of_ring = np.bincount(ring)[ring]
    scatter = _ring_means(variance / mean, ring, _FEW_MISSES / (n * b.mean() * mean))
    quiet = np.clip(scatter, _LEAST_SILENCE, _MOST_SILENCE)
    events = medians(mean, ring) / (1 - quiet)
    counted = n * b.mean() * events
    misses = counted * quiet
    unsure = np.hypot(np.sqrt(2 / (n * size_of_ring)), 1 / np.sqrt(misses * size_of_ring + 1))
    apart = np.abs(np.log(events / np.median(events)))
    as_events = (apart <= _SAME_EVENTS + 4 * unsure * quiet / (1 - quiet)) & (scatter <= 1 + 4 * unsure)
    if np.mean(as_events) < _MOST:
        return None
    own_misses = counted * np.maximum(1 - mean / events, 0.0)
    # A channel that missed no event need not be full: one miss at the ring's probability is added to the observed ones.
    own_quiet = np.clip((own_misses + 1) / (counted + 1 / quiet), _LEAST_SILENCE, _MOST_SILENCE)
    of_ring, own = np.log(rate_of(1 - quiet)), np.log(rate_of(1 - own_quiet))
    own_error = _rate_error(own, 1 / np.sqrt(own_misses + 1))
    weight = RATE_SPREAD**2 / (RATE_SPREAD**2 + own_error**2)
    rate = np.exp(of_ring + weight * (own - of_ring))
    error = np.hypot(_rate_error(of_ring, unsure), np.sqrt(weight) * own_error)
    law = Saturating(mean / probability(rate), rate, np.ones_like(rate), np.zeros((0, 2)))
    law.at = conditions_on_grid(law.size, law.rate, conditions)
    law.error, law.span = error, law.span_of(at[rows])
    law.first_span = law.span_of(at)
    return law


def _ring_means(values: np.ndarray, ring: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Robust mean of each ring at the places of its channels, (live,): over values up to 4 times the median, or up to `few`.

    A plain median is 0 where most channels missed no event, although the ring does miss some.
    """
    usual = values <= np.maximum(4 * medians(values, ring), few)
    return np.asarray((np.bincount(ring, np.where(usual, values, 0.0)) / np.bincount(ring, usual))[ring])


def _rate_error(log_rate: np.ndarray, of_log_quiet: np.ndarray) -> np.ndarray:
    """Error of a log-rate, from the error of the logarithm of the probability of silence."""
    rate = np.exp(log_rate)
    return np.asarray((1 + rate / SHAPE) / rate * of_log_quiet)


def _steadiest(at: np.ndarray) -> np.ndarray:
    """Positions of lumisections of nearly the same a/b, from conditions (n, 2).

    The narrowest interval of a/b that holds a quarter of them (30 at least), widened by its own width on both sides.
    """
    share = np.log(at[:, 0] / at[:, 1])
    order = np.argsort(share, kind="stable")
    size = min(len(order), max(FEWEST_LUMISECTIONS, len(order) // 4))
    width = share[order[size - 1 :]] - share[order[: len(order) - size + 1]]
    begin = int(width.argmin())
    low, high = share[order[begin]], share[order[begin + size - 1]]
    margin = high - low
    return np.flatnonzero((share >= low - margin) & (share <= high + margin))
