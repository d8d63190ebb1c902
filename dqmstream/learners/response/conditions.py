"""How the channels of a lumisection move: with its events, with its pileup, by a run's gains, by the mode of a readout box.

Events move all counts by the same share. Pileup, gains and modes are changes of rates, and what a count does then is the law
of `response`, whatever form of response the reference has: P(R λ (1 + d)) for a gain d.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.response import MEDIAN_OF_SQUARE, SHAPE, rate_of, silence
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


_Index = np.ndarray | slice | tuple[slice | None, ...]


class Conditions(NamedTuple):
    """Events and pileup of lumisections, as multiples of what a `Look` has, (n, 1) both."""

    events: np.ndarray
    pileup: np.ndarray

    def rows(self, index: _Index) -> Conditions:
        """The same of some lumisections."""
        return Conditions(self.events[index], self.pileup[index])


@dataclass(frozen=True, eq=False)
class Look:
    """Lumisections seen through the reference, all of one type, (n, live).

    residual: (count - expected) / deviation. full: how many deviations a channel counts that fires in every event. rate: R λ.
    quiet: probability that the channel gives no signal in an event. deviation: of the count.
    """

    residual: np.ndarray
    full: np.ndarray
    rate: np.ndarray
    quiet: np.ndarray
    deviation: np.ndarray

    @property
    def leverage(self) -> np.ndarray:
        """By how many deviations the count moves where there are 100 % more events."""
        return self.full * (1 - self.quiet)

    @property
    def per_rate(self) -> np.ndarray:
        """By how many deviations the count moves where the rate does by 1, as the tangent says."""
        return self.full * self.quiet / (1 + self.rate / SHAPE)

    @property
    def rate_leverage(self) -> np.ndarray:
        """The same where the rate changes by 100 %."""
        return self.rate * self.per_rate

    def of(self, channels: np.ndarray | slice) -> Look:
        """The same of some channels."""
        return Look(*(getattr(self, field.name)[:, channels] for field in fields(self)))

    def single(self) -> Look:
        """The same in float32."""
        return Look(*(getattr(self, field.name).astype(np.float32) for field in fields(self)))

    def rows(self, index: _Index) -> Look:
        """The same of some lumisections."""
        return Look(*(getattr(self, field.name)[index] for field in fields(self)))

    def under(self, gain: np.ndarray | float, conditions: Conditions | None = None) -> Look:
        """The same where rates are expected to be higher by gains, -1 or more, under other conditions if they are given.

        gain: anything that goes with (n, live). Deviations become those of what is expected then.
        """
        events, pileup = conditions or (1.0, 1.0)
        rate = self.rate * (pileup * (1 + gain))
        quiet = silence(rate)
        # N events that fire with probability p count N p, with variance N p (1 - p).
        wider = np.sqrt(np.maximum(quiet * (1 - quiet) / (self.quiet * (1 - self.quiet)), _NARROWEST) * events)
        residual = (self.residual + self.full * (1 - self.quiet - events * (1 - quiet))) / wider
        return Look(residual, self.full * events / wider, rate, quiet, self.deviation * wider)


class Modes:
    """The common modes of the live channels of a reference.

    ring: a number for each pair of depth and |ieta|, (live,). boxes: names of the readout boxes that hold a live channel
    (`lumisection.readout_box`), (B,). cells: positions of each box's channels among the live ones.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        _, row, column = np.nonzero(reference.live)
        self.ring = reference.ring
        box = readout_box(IETA[row], IPHI[column])
        self.boxes = np.unique(box)
        self.cells = [np.flatnonzero(box == name) for name in self.boxes]

    def look(self, counts: np.ndarray) -> Look:
        """Lumisections by counts of the live channels, (n, live), under the conditions that these show; float64."""
        expected, deviation, fired = self._reference.response(counts)
        return Look((counts - expected) / deviation, expected / (deviation * fired), rate_of(fired), 1 - fired, deviation)

    def by_box(self, values: np.ndarray) -> np.ndarray:
        """Sums over the channels of each box: (..., live) to (..., B)."""
        return np.stack([values[..., cells].sum(axis=-1) for cells in self.cells], axis=-1)


def conditions_under(look: Look, gain: np.ndarray, near: Conditions | None = None, steps: int = _STEPS) -> Conditions:
    """The conditions that lumisections show where rates have moved by gains, (live,).

    Events and pileup of each are moved to the least squares of what is left over; channels that stand out do not count.
    near: where they are looked for first.
    """
    asked = look.under(np.where(gain > DEAD, gain, 0.0), near)
    events, pileup = near or np.ones((2, len(look.residual), 1), dtype=look.residual.dtype)
    for _ in range(steps):
        more = _nearer(asked)
        asked = asked.under(0.0, more)
        events, pileup = events * more.events, pileup * more.pileup
    return Conditions(events, pileup)


def products_of(directions: tuple[np.ndarray, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Products of two directions, (n, live) both, with themselves and each other, by their numbers: (n, 1) each."""
    return {(i, j): np.einsum("nc,nc->n", directions[i], directions[j])[:, None] for i, j in ((0, 0), (0, 1), (1, 1))}


def free_to_move(projection: list[np.ndarray], product: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """By how much it raises a log-density that events and pileup are free, each with a flat prior.

    p' A⁻¹ p / 2 - log det A / 2, p: products of the noise with both directions; A: of the directions, by their numbers. Nothing
    where A is singular (no light).
    """
    a, b, c = product[0, 0], product[0, 1], product[1, 1]
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    inside = c * projection[0] ** 2 - 2 * b * projection[0] * projection[1] + a * projection[1] ** 2
    safe = np.where(lit, determinant, 1.0)
    return np.where(lit, 0.5 * inside / safe - 0.5 * np.log(safe), 0.0)


def _nearer(look: Look) -> Conditions:
    """By what to multiply events and pileup so that less is left over; 1 where there is no light to tell."""
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
    return Conditions(*(np.exp(np.clip(move, -_LONGEST, _LONGEST)) for move in moves))
