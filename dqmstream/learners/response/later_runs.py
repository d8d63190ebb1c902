"""How a later run improves the response where the first run left it open, at a pileup that no run had before.

The counts expected under the first run's conditions are kept. Gains measured before stay valid up to a factor
(`Reference.gain_factor`), and no past run is read again. Channels and readout boxes that failed in the later run are left
out: their losses would be absorbed into their rates, and every good run after it would look changed.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.base import MeasureConditions, Response
from dqmstream.learners.response.law import probability, sensitivity
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.saturating import Saturating, conditions_on_grid
from dqmstream.learners.response.scatter import FEWEST_LUMISECTIONS, RATE_SPREAD

_NEW_PILEUP = 0.2
"""How far beyond the fitted range, in log(pileup), a run must reach to change the law."""

_GAIN_SPREAD = 0.015
"""Expected standard deviation of a channel's log-gain between the first run and a later one, about that of its readout box.
A channel that is full in the first run has no measurable gain there: only this prior separates its gain from its rate."""

_DEAD_GAIN = 0.25
"""A channel keeps its rate where its gain is beyond this, and it counts less than half of what is expected."""

_ROUNDS = 5
"""Gauss-Newton steps."""

_LONGEST = 0.5
"""Largest step of a log-rate."""

_CUT = 30.0
"""Residuals are cut at this many standard deviations."""

_OUTLYING = 5.0
"""Standard deviations from which a channel, or the rates of a readout box, count as failed."""

_BOX_GAIN = 0.05
"""Gain from which a readout box counts as failed."""

_IMPROVED = 0.95
"""The later run constrained a rate where it reduced its error to less than this share."""

_MEDIAN_OF_TWO = 2 * np.log(2)
"""Median of the sum of two squared standard normal numbers."""

_ERROR_OF_MEDIAN = 1.2533
"""Error of the median of n normal numbers, in units of their standard deviation over sqrt(n)."""


def updated(
    response: Response,
    counts: np.ndarray,
    conditions: MeasureConditions,
    profile: np.ndarray,
    ring: np.ndarray,
    box: np.ndarray,
) -> Response:
    """The response after a later run, with counts (n, live); the same object where the run adds nothing.

    profile: mean counts of the first run, ring: number of each channel's ring, box: name of its readout box, all (live,).
    """
    at = conditions(counts)
    lit = at[:, 1] > 0
    counts, at = counts[lit], at[lit]
    if isinstance(response, Saturating):
        return with_rates_of(response, counts, at, conditions, box) if _reaches_new_pileup(response, at) else response
    if not isinstance(response, Quadratic) or np.isfinite(response.ratio[1]) or len(at) < FEWEST_LUMISECTIONS:
        return response
    later, _ = Quadratic.fit(counts, at, profile, ring)
    return response.with_slopes_of(later, ring) if np.isfinite(later.ratio[1]) else response


def _reaches_new_pileup(law: Saturating, at: np.ndarray) -> bool:
    """Whether lumisections under conditions (n, 2) reach far enough beyond the fitted range to change the law.

    A law that a moving first run fixed is never changed: other counts at another pileup are then changes of gains.
    """
    if law.span is None or not law.open or len(at) < FEWEST_LUMISECTIONS:
        return False
    low, high = np.log(law.span_of(at))
    fitted_low, fitted_high = np.log(law.span)
    return bool(low < fitted_low - _NEW_PILEUP or high > fitted_high + _NEW_PILEUP)


def with_rates_of(
    law: Saturating, counts: np.ndarray, at: np.ndarray, conditions: MeasureConditions, box: np.ndarray
) -> Saturating:
    """The law after a fit of its rates to another run, with counts (n, live) under conditions (n, 2).

    In that run, each channel has a gain g, its readout box a common gain G, and the log-rate of the law is off by u. Least
    squares with the priors g ~ Normal(G, .015²) and u ~ Normal(0, error²):

        count = e (1 + g s(R λ) + u (s(R λ) - s(λ))),    s: `law.sensitivity` at the probability of silence

    The expected count at R = 1 is held. Failed channels and boxes keep their rates and errors. box: name of each channel's
    readout box, (live,).
    """
    error = law.error if law.error is not None else np.full(law.rate.shape, RATE_SPREAD)
    anchor, boxes = law.size * probability(law.rate), np.unique(box, return_inverse=True)[1]

    def with_rates(rate: np.ndarray) -> Saturating:
        size = anchor / probability(rate)
        return Saturating(size, rate, law.spread, conditions_on_grid(size, rate, conditions))

    found, posterior, gain, of_box = law, error, np.zeros_like(error), np.zeros_like(error)
    for _ in range(_ROUNDS):
        plain = Saturating(found.size, found.rate, law.spread, found.at)
        expected, deviation, fired = plain.expected(at)
        level, moves = expected / deviation, sensitivity(1 - fired)
        by_gain = level * moves
        by_rate = level * (moves - sensitivity(1 - np.minimum(probability(found.rate), 1 - 1e-9)))
        residual = np.clip((counts - expected) / deviation, -_CUT, _CUT)
        gg, gu = (by_gain**2).sum(axis=0), (by_gain * by_rate).sum(axis=0)
        uu = (by_rate**2).sum(axis=0) + 1 / error**2
        onto_gain = (by_gain * residual).sum(axis=0)
        onto_rate = (by_rate * residual).sum(axis=0) - np.log(found.rate / law.rate) / error**2
        of_box = _box_gains(gg - gu**2 / uu, onto_gain - onto_rate * gu / uu, boxes)
        gg, onto_gain = gg + 1 / _GAIN_SPREAD**2, onto_gain + of_box / _GAIN_SPREAD**2
        determinant = gg * uu - gu**2
        change = (gg * onto_rate - gu * onto_gain) / determinant
        gain = (uu * onto_gain - gu * onto_rate) / determinant
        posterior = np.sqrt(gg / determinant)
        dead = (np.abs(gain) > _DEAD_GAIN) & (counts.mean(axis=0) < 0.5 * expected.mean(axis=0))
        found = with_rates(found.rate * np.where(dead, 1.0, np.exp(np.clip(change, -_LONGEST, _LONGEST))))
    failed = dead | _failed(gain - of_box, of_box, np.log(found.rate / law.rate), error, posterior, boxes)
    found = with_rates(np.where(failed, law.rate, found.rate))
    found.error = np.where(failed, error, posterior)
    span = found.span_of(at)
    if law.span is not None:
        span = np.array([min(span[0], law.span[0]), max(span[1], law.span[1])])
    found.span, found.first_span = span, law.first_span
    return found


def _box_gains(information: np.ndarray, onto: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Common gain of each readout box at the places of its channels, (live,): the weighted median of the channels' gains.

    information: inverse variance of each channel's gain by its counts alone, (live,). onto: this times the gain, (live,).
    boxes: number 0, 1, ... of each channel's box, (live,).
    """
    gain = np.divide(onto, information, out=np.zeros_like(onto), where=information > 0)
    weight = information / (1 + information * _GAIN_SPREAD**2)
    found = np.zeros(boxes.max() + 1)
    for number in range(len(found)):
        cells = np.flatnonzero(boxes == number)
        cells = cells[np.argsort(gain[cells], kind="stable")]
        below = np.cumsum(weight[cells])
        found[number] = gain[cells[np.searchsorted(below, 0.5 * below[-1])]]
    return np.asarray(found[boxes])


def _failed(
    gain: np.ndarray, of_box: np.ndarray, moved: np.ndarray, error: np.ndarray, posterior: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """Channels that failed in the later run, alone or with their readout box: bool, (live,), as all arguments.

    gain: relative to that of the box, of_box. moved: change of the log-rate; error, posterior: its errors before and after.

    Where the middle of the pulls spreads by more than 1, the pulls are divided by it (an empirical null): errors that are
    stated too small then do not count as failures.
    """
    surprise = (gain / _GAIN_SPREAD) ** 2 + (moved / error) ** 2
    alone = surprise > _OUTLYING**2 * max(1.0, float(np.median(surprise)) / _MEDIAN_OF_TWO)
    constrained = posterior < _IMPROVED * error
    pull = np.divide(moved, np.sqrt(error**2 - posterior**2), out=np.zeros_like(moved), where=constrained)
    together = np.abs(of_box) > _BOX_GAIN
    if constrained.any():
        middle = np.median(pull[constrained])
        spread = max(1.0, float(1.4826 * np.median(np.abs(pull[constrained] - middle))))
        for number in range(boxes.max() + 1):
            cells = boxes == number
            some = cells & constrained
            if some.any():
                unsure = _ERROR_OF_MEDIAN * spread / np.sqrt(np.count_nonzero(some))
                together |= cells & (abs(np.median(pull[some]) - middle) > _OUTLYING * unsure)
    return np.asarray(alone | together)
