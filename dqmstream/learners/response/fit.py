"""How the response of channels is taken from lumisections, and how later runs teach it what the first one could not.

The law (`learners.response.response.Saturating`) has a rate and a size for each channel. Three things tell the rate:

* pileup that moves within the run: counts follow it by the law (`Saturating.fit`);
* the scatter of counts: of N events a share p fires, with mean N p and variance N p (1 - p) (`levelled`). It needs no
  movement, so a run of levelled pileup is enough; what it does not tell, the rates of channels that fire in nearly every event,
  has a large error, which `Saturating.expected` adds to its deviations at other pileups;
* pileup that a later run has and the runs before did not (`learners.response.later_runs`).
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.later_runs import ALIKE, taught
from dqmstream.learners.response.response import (
    ROUNDING,
    SHAPE,
    Conditions,
    Quadratic,
    Response,
    Saturating,
    medians,
    probability,
    rate_of,
    table,
)

_AS_GOOD = 1.1
"""The law is taken where it leaves over at most so many times the variance that the quadratic leaves."""

_FEWEST = 30
"""Lumisections from which the rates of a law can be taken."""

_SAME_EVENTS = 0.05
"""By how much, as a logarithm, the events that the scatter of rings tells may differ from ring to ring: else counts are no
counts of the same events (they were scaled), and scatter tells no rate."""

_MOST = 0.8
"""Share of the channels whose scatter must be that of counts of events."""

_FEW_MISSES = 20.0
"""Missed events of a channel, in all lumisections, up to which a ring's share of them is a mean over all its channels."""

_SILENCE = (1e-7, 1 - 1e-3)

_NEW = 0.2
"""By how much, as a logarithm, a run's pileup must go beyond what was taught before it teaches."""


def fit(counts: np.ndarray, conditions: Conditions, profile: np.ndarray, ring: np.ndarray, box: np.ndarray) -> Response:
    """The response of channels by the lumisections of a run, counts (n, live), all with b > 0.

    profile: mean counts, (live,). ring: a number for each ring, (live,). box: name of each readout box, (live,).
    """
    at = conditions(counts)
    quadratic, left_over = Quadratic.fit(counts, at, profile, ring)
    if len(counts) < _FEWEST:
        return quadratic
    moves = bool(np.isfinite(quadratic.ratio[1]))
    if moves:
        law, left_by_law = Saturating.fit(counts, at, conditions, quadratic, ring)
        if _is_good(law, left_by_law, left_over):
            return law
    law_of_scatter = levelled(counts, at, conditions, ring)
    if law_of_scatter is None:
        return quadratic
    if moves:
        law_of_scatter = taught(law_of_scatter, counts, at, conditions, box)
    left_by_law = law_of_scatter.settle(counts, at)
    # A spread that was measured where rounding hides the scatter of counts says nothing of other pileups.
    counting = law_of_scatter.counting(at)
    law_of_scatter.spread = np.where(counting > (ROUNDING * law_of_scatter.size) ** 2, law_of_scatter.spread, 1.0)
    return law_of_scatter if _is_good(law_of_scatter, left_by_law, left_over) else quadratic


def _is_good(law: Saturating, left_by_law: np.ndarray, left_over: np.ndarray) -> bool:
    """Whether the law is as good as a quadratic, and its pileup can be read off a and b."""
    as_good = np.median(left_by_law / np.maximum(left_over, np.finfo(np.float64).tiny)) <= _AS_GOOD
    return bool(law.told_apart and as_good)


def levelled(counts: np.ndarray, at: np.ndarray, conditions: Conditions, ring: np.ndarray) -> Saturating | None:
    """The law by the scatter of counts where pileup is steadiest, counts (n, live); None where counts are no counts of events.

    With 1 - p = variance / mean of the channels of a ring, N is mean / p, and each channel of the ring has its own p from it.
    """
    rows = _steadiest(at)
    n, b = len(rows), at[rows, 1:]
    mean = counts[rows].sum(axis=0) / b.sum()
    if (mean <= 0).any():
        return None
    variance = ((counts[rows] - b * mean) ** 2 / b).sum(axis=0) / (n - 1)
    size_of_ring = np.bincount(ring)[ring]
    scatter = _of_most(variance / mean, ring, _FEW_MISSES / (n * b.mean() * mean))
    quiet = np.clip(scatter, *_SILENCE)
    events = medians(mean, ring) / (1 - quiet)
    counted = n * b.mean() * events
    misses = counted * quiet
    unsure = np.hypot(np.sqrt(2 / (n * size_of_ring)), 1 / np.sqrt(misses * size_of_ring + 1))
    apart = np.abs(np.log(events / np.median(events)))
    as_events = (apart <= _SAME_EVENTS + 4 * unsure * quiet / (1 - quiet)) & (scatter <= 1 + 4 * unsure)
    if np.mean(as_events) < _MOST:
        return None
    own_misses = counted * np.maximum(1 - mean / events, 0.0)
    # A channel that missed no event is not full for that: one miss at the share of its ring is added to what was seen.
    own_quiet = np.clip((own_misses + 1) / (counted + 1 / quiet), *_SILENCE)
    of_ring, own = np.log(rate_of(1 - quiet)), np.log(rate_of(1 - own_quiet))
    own_error = _rate_error(own, 1 / np.sqrt(own_misses + 1))
    weight = ALIKE**2 / (ALIKE**2 + own_error**2)
    rate = np.exp(of_ring + weight * (own - of_ring))
    error = np.hypot(_rate_error(of_ring, unsure), np.sqrt(weight) * own_error)
    law = Saturating(mean / probability(rate), rate, np.ones_like(rate), np.zeros((0, 2)))
    law.at = table(law.size, law.rate, conditions)
    law.error, law.span = error, law.span_of(at[rows])
    law.first_span = law.span_of(at)
    return law


def _of_most(values: np.ndarray, ring: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Means in each ring of values up to four times the median or up to `few`, at the places of its channels.

    A median alone is 0 where most channels missed no event, as if none ever did.
    """
    usual = values <= np.maximum(4 * medians(values, ring), few)
    return np.asarray((np.bincount(ring, np.where(usual, values, 0.0)) / np.bincount(ring, usual))[ring])


def _rate_error(log_rate: np.ndarray, of_log_quiet: np.ndarray) -> np.ndarray:
    """Error of a log-rate from that of the logarithm of the probability to be silent."""
    rate = np.exp(log_rate)
    return np.asarray((1 + rate / SHAPE) / rate * of_log_quiet)


def _steadiest(at: np.ndarray) -> np.ndarray:
    """Lumisections, a fourth of all and 30 at least, among which a/b varies least; all whose a/b is as theirs."""
    share = np.log(at[:, 0] / at[:, 1])
    order = np.argsort(share, kind="stable")
    size = min(len(order), max(_FEWEST, len(order) // 4))
    width = share[order[size - 1 :]] - share[order[: len(order) - size + 1]]
    begin = int(width.argmin())
    low, high = share[order[begin]], share[order[begin + size - 1]]
    margin = high - low
    return np.flatnonzero((share >= low - margin) & (share <= high + margin))


def after(
    response: Response, counts: np.ndarray, conditions: Conditions, profile: np.ndarray, ring: np.ndarray, box: np.ndarray
) -> Response:
    """The response after lumisections of a later run, counts (n, live); the same object where they have nothing to teach."""
    at = conditions(counts)
    lit = at[:, 1] > 0
    counts, at = counts[lit], at[lit]
    if isinstance(response, Saturating):
        return taught(response, counts, at, conditions, box) if goes_beyond(response, at) else response
    if not isinstance(response, Quadratic) or np.isfinite(response.ratio[1]) or len(at) < _FEWEST:
        return response
    later, _ = Quadratic.fit(counts, at, profile, ring)
    return response.after(later, ring) if np.isfinite(later.ratio[1]) else response


def goes_beyond(law: Saturating, at: np.ndarray) -> bool:
    """Whether the pileup of lumisections, by conditions (n, 2), goes far enough beyond what the law was taught to teach it.

    Where the first run's pileup moved enough the law stays: there, what a run of other pileup counts is its gains.
    """
    if law.span is None or not law.open or len(at) < _FEWEST:
        return False
    low, high = np.log(law.span_of(at))
    taught_low, taught_high = np.log(law.span)
    return bool(low < taught_low - _NEW or high > taught_high + _NEW)
