"""How the channels of a lumisection move: with its events, with its pileup, by a run's gains, by the mode of a readout box.

Events move all counts by the same share. Pileup, gains and modes are changes of rates, and what a count does then is the law
of `response`, whatever form of response the reference has: P(R λ (1 + d)) for a gain d.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dqmstream.learners.reference import Reference
from dqmstream.learners.response import MEDIAN_OF_SQUARE, SHAPE, medians, rate_of, sensitivity, silence
from dqmstream.lumisection import IETA, IPHI, readout_box

DEAD = -0.5
"""A gain below this is of a channel that counts next to nothing, and says nothing of conditions."""

_NARROWEST = 0.01
"""Variance of a count at the least, over what it was: of a dead channel the law says none."""

_STEPS = 3
"""Rounds in which conditions are settled; a third moves them by less than a hundredth of what a lumisection shows."""

_ASTRAY = 4.0
"""Channels that are off by more of their typical deviations than this say nothing of conditions: they are faulty."""

_LONGEST = 0.5
"""By how much, as a logarithm, events and pileup may move in one step."""


@dataclass(frozen=True, eq=False)
class Look:
    """Lumisections seen through the reference, all float64 (n, live).

    residual: (count - expected) / deviation. full: how many deviations a channel counts that fires in every event. rate: R λ.
    fired: probability that the channel fires in an event. deviation: of the count.
    """

    residual: np.ndarray
    full: np.ndarray
    rate: np.ndarray
    fired: np.ndarray
    deviation: np.ndarray

    @property
    def leverage(self) -> np.ndarray:
        """By how many deviations the count moves where there are 100 % more events."""
        return self.full * self.fired

    @property
    def per_rate(self) -> np.ndarray:
        """By how many deviations the count moves where the rate does by 1, as the tangent says."""
        return self.full * (1 - self.fired) / (1 + self.rate / SHAPE)

    @property
    def rate_leverage(self) -> np.ndarray:
        """The same where the rate changes by 100 %."""
        return self.rate * self.per_rate

    def of(self, channels: np.ndarray) -> Look:
        """The same of some channels."""
        return Look(*(getattr(self, field.name)[:, channels] for field in fields(self)))

    def rows(self, index: np.ndarray | slice) -> Look:
        """The same of some lumisections."""
        return Look(*(getattr(self, field.name)[index] for field in fields(self)))

    def under(self, gain: np.ndarray | float, events: np.ndarray | float = 1.0) -> Look:
        """The same where rates are expected to be higher by gains, -1 or more, and events to be so many times as many.

        gain: anything that goes with (n, live). events: with (n, 1). Deviations become those of what is expected then.
        """
        rate = self.rate * (1 + gain)
        quiet = silence(rate)
        fired = 1 - quiet
        # N events that fire with probability p count N p, with variance N p (1 - p).
        wider = np.sqrt(np.maximum(fired * quiet / (self.fired * (1 - self.fired)), _NARROWEST) * events)
        residual = (self.residual + self.full * (self.fired - events * fired)) / wider
        return Look(residual, self.full * events / wider, rate, fired, self.deviation * wider)


class Modes:
    """The common modes of the live channels of a reference.

    sensitivity: of each live channel in the reference run, the same in each ring, (live,). ring: a number for each pair of
    depth and |ieta|, (live,). boxes: names of the readout boxes that hold a live channel (`lumisection.readout_box`), (B,).
    cells: positions of each box's channels among the live ones.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        _, row, column = np.nonzero(reference.live)
        self.ring = reference.ring
        self.sensitivity = sensitivity(1 - medians(reference.typical.fired[0], self.ring))
        box = readout_box(IETA[row], IPHI[column])
        self.boxes = np.unique(box)
        self.cells = [np.flatnonzero(box == name) for name in self.boxes]

    def look(self, counts: np.ndarray) -> Look:
        """Lumisections by the counts of the live channels, (n, live), under the conditions that these show by themselves."""
        expected, deviation, fired = self._reference.response(counts)
        return Look((counts - expected) / deviation, expected / (deviation * fired), rate_of(fired), fired, deviation)

    def settled(self, look: Look, gain: np.ndarray, thinned: int = 1) -> Look:
        """The same lumisections under the conditions that they show where rates have moved by gains, (live,).

        Events and pileup of each are moved to the least squares of what is left over; channels that stand out do not count.
        thinned: one channel of so many is asked. The gains themselves are not taken out.
        """
        asked = look.of(np.arange(0, look.residual.shape[1], thinned)) if thinned > 1 else look
        gain = np.where(gain > DEAD, gain, 0.0)
        asked = asked.under(gain[::thinned])
        events, pileup = np.ones((len(look.residual), 1)), np.ones((len(look.residual), 1))
        for _ in range(_STEPS):
            more_events, more_pileup = _nearer(asked)
            asked = asked.under(more_pileup - 1, more_events)
            events, pileup = events * more_events, pileup * more_pileup
        return look.under(pileup - 1, events)

    def by_box(self, values: np.ndarray) -> np.ndarray:
        """Sums over the channels of each box: (..., live) to (..., B)."""
        return np.stack([values[..., cells].sum(axis=-1) for cells in self.cells], axis=-1)


def _nearer(look: Look) -> tuple[np.ndarray, np.ndarray]:
    """By what to multiply events and pileup so that less is left over, both (n, 1); 1 where there is no light to tell."""
    spread = np.sqrt(np.median(look.residual**2, axis=1, keepdims=True) / MEDIAN_OF_SQUARE)
    noise = np.where(np.abs(look.residual) < _ASTRAY * np.maximum(spread, 1), look.residual, 0.0)
    weight = noise != 0
    events, pileup = look.leverage * weight, look.rate_leverage * weight
    a, b, c = (
        (one * other).sum(axis=1, keepdims=True) for one, other in ((events, events), (events, pileup), (pileup, pileup))
    )
    along, across = (events * noise).sum(axis=1, keepdims=True), (pileup * noise).sum(axis=1, keepdims=True)
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    safe = np.where(lit, determinant, 1.0)
    moves = (np.where(lit, move / safe, 0.0) for move in (c * along - b * across, a * across - b * along))
    more_events, more_pileup = (np.exp(np.clip(move, -_LONGEST, _LONGEST)) for move in moves)
    return more_events, more_pileup
