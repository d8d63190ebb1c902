"""The fit of events and pileup to a lumisection's own counts, given the gains of its run.

The reference reads both off two groups of rings (a and b), whose channels may have changed. Once gains are known, all channels
are used.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.observation import ConditionFactors, Observation
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE

DEAD = -0.5
"""A channel with a gain below this counts next to nothing and is not used."""

_STEPS = 3
"""Steps of the fit. A third one changes conditions by less than 1 % of what a lumisection resolves."""

_OUTLYING = 4.0
"""Channels whose residual is more than this many typical deviations from 0 are not used."""

_LONGEST = 0.5
"""Largest change of log(events) and log(pileup) in a step."""


def fit_conditions(
    observed: Observation, gain: np.ndarray, near: ConditionFactors | None = None, steps: int = _STEPS
) -> ConditionFactors:
    """Events and pileup of each lumisection, given the gains of its run: relative to those the observation assumes.

    Gauss-Newton least squares on the residuals, without outlying channels. gain: (live,). near: where to start.
    """
    assumed = observed.under(np.where(gain > DEAD, gain, 0.0), near)
    events, pileup = near or np.ones((2, len(observed.residual), 1), dtype=observed.residual.dtype)
    for _ in range(steps):
        more = _step(assumed)
        assumed = assumed.under(0.0, more)
        events, pileup = events * more.events, pileup * more.pileup
    return ConditionFactors(events, pileup)


def _step(observed: Observation) -> ConditionFactors:
    """One step of the least squares: factors on events and pileup; 1 where the two cannot be separated (no counts)."""
    spread = np.sqrt(np.median(observed.residual**2, axis=1, keepdims=True) / MEDIAN_OF_SQUARE)
    noise = np.where(np.abs(observed.residual) < _OUTLYING * np.maximum(spread, 1), observed.residual, 0.0)
    weight = noise != 0
    events, pileup = observed.leverage * weight, observed.rate_leverage * weight
    a, b, c = (
        (one * other).sum(axis=1, keepdims=True) for one, other in ((events, events), (events, pileup), (pileup, pileup))
    )
    along, across = (events * noise).sum(axis=1, keepdims=True), (pileup * noise).sum(axis=1, keepdims=True)
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    safe = np.where(lit, determinant, 1.0)
    moves = (np.where(lit, move / safe, 0.0) for move in (c * along - b * across, a * across - b * along))
    return ConditionFactors(*(np.exp(np.clip(move, -_LONGEST, _LONGEST)) for move in moves))
