"""How lumisections of a later run teach a law the rates that the runs before could not tell.

What a channel counts under the conditions of the first run is held, so that gains that were measured before stay what they
are, but for a factor (`Reference.rescaled`), and no past run must be read again. Channels and readout boxes that have failed in
the later run teach nothing: what they lack would be laid to their rates, and be news in every good run after it.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.response import Conditions, Saturating, probability, sensitivity, table

ALIKE = 0.1
"""Deviation of the logarithm of rates within a ring, for channels whose own counts say less."""

_GAIN = 0.015
"""Deviation of a channel's log-gain between the first run and one that teaches, about that of its readout box. A channel that
is full in the first run has no gain there that could be told from its rate: what it counts later is its rate."""

_FAULTY = 0.25
"""Gain beyond which a channel that counts less than half of what it should is left where it was."""

_ROUNDS, _LONGEST, _CUT = 5, 0.5, 30.0
"""Gauss-Newton steps, their largest length in the logarithm of a rate, and residuals that are cut in them."""

_STRANGE = 5.0
"""Deviations by which gain and rate of a channel together, or the rates of a readout box, may be off."""

_BOX_GAIN = 0.05
"""Gain of a readout box from which it counts as failed."""

_TOLD = 0.95
"""A rate whose error falls to less than this share was told something."""

_MEDIAN_OF_TWO = 2 * np.log(2)
"""Of the sum of the squares of two standard normal numbers."""

_ERROR_OF_MEDIAN = 1.2533
"""Times the deviation over the root of the number, of normal numbers."""


def taught(law: Saturating, counts: np.ndarray, at: np.ndarray, conditions: Conditions, box: np.ndarray) -> Saturating:
    """The law after lumisections of another run, counts (n, live), under conditions (n, 2).

    In that run each channel has a gain g and its readout box a gain G, and the log-rate of the channel is off by u. By least
    squares, with g ~ Normal(G, .015²) and u ~ Normal(0, error²):

        count = e (1 + g s(R λ) + u (s(R λ) - s(λ))),    s: `sensitivity`

    What it counts at R = 1 is held. What has failed in the run (`_failed`) keeps its rate and its error. box: name of the
    readout box of each channel, (live,).
    """
    error = law.error if law.error is not None else np.full(law.rate.shape, ALIKE)
    anchor, boxes = law.size * probability(law.rate), np.unique(box, return_inverse=True)[1]

    def with_rates(rate: np.ndarray) -> Saturating:
        size = anchor / probability(rate)
        return Saturating(size, rate, law.spread, table(size, rate, conditions))

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
        of_box = _gains_of_boxes(gg - gu**2 / uu, onto_gain - onto_rate * gu / uu, boxes)
        gg, onto_gain = gg + 1 / _GAIN**2, onto_gain + of_box / _GAIN**2
        determinant = gg * uu - gu**2
        change = (gg * onto_rate - gu * onto_gain) / determinant
        gain = (uu * onto_gain - gu * onto_rate) / determinant
        posterior = np.sqrt(gg / determinant)
        dead = (np.abs(gain) > _FAULTY) & (counts.mean(axis=0) < 0.5 * expected.mean(axis=0))
        found = with_rates(found.rate * np.where(dead, 1.0, np.exp(np.clip(change, -_LONGEST, _LONGEST))))
    failed = dead | _failed(gain - of_box, of_box, np.log(found.rate / law.rate), error, posterior, boxes)
    found = with_rates(np.where(failed, law.rate, found.rate))
    found.error = np.where(failed, error, posterior)
    span = found.span_of(at)
    if law.span is not None:
        span = np.array([min(span[0], law.span[0]), max(span[1], law.span[1])])
    found.span, found.first_span = span, law.first_span
    return found


def _gains_of_boxes(information: np.ndarray, onto: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Gain that the channels of each readout box have in common, at their places, (live,): the weighted median of their own.

    information: what is known of the gain of each channel by its counts alone, (live,). onto: times its gain, (live,). boxes: a
    number 0, 1, ... for each box, (live,).
    """
    gain = np.divide(onto, information, out=np.zeros_like(onto), where=information > 0)
    weight = information / (1 + information * _GAIN**2)
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
    """Channels that have failed in the run that teaches, alone or with their readout box: bool, all (live,).

    gain: less that of its box, of_box. moved: by how much log-rates are to move. error, posterior: theirs before and after.

    Surprises are divided by the spread of their middle where that is above 1 (an empirical null): where errors were stated too
    small nothing has failed for that.
    """
    surprise = (gain / _GAIN) ** 2 + (moved / error) ** 2
    alone = surprise > _STRANGE**2 * max(1.0, float(np.median(surprise)) / _MEDIAN_OF_TWO)
    told = posterior < _TOLD * error
    pull = np.divide(moved, np.sqrt(error**2 - posterior**2), out=np.zeros_like(moved), where=told)
    together = np.abs(of_box) > _BOX_GAIN
    if told.any():
        middle = np.median(pull[told])
        spread = max(1.0, float(1.4826 * np.median(np.abs(pull[told] - middle))))
        for number in range(boxes.max() + 1):
            cells = boxes == number
            some = cells & told
            if some.any():
                unsure = _ERROR_OF_MEDIAN * spread / np.sqrt(np.count_nonzero(some))
                together |= cells & (abs(np.median(pull[some]) - middle) > _STRANGE * unsure)
    return np.asarray(alone | together)
