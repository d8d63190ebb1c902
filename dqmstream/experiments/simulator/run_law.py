"""The law of one run of a stream outside the law of gains: what moves in it, drawn once a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.simulator.detector import LIVE, READOUT_BOXES, RING_RATES, fire, probability
from dqmstream.experiments.simulator.draws import Purpose, generator
from dqmstream.experiments.simulator.fault_locations import CHANNELS, box, channel
from dqmstream.experiments.simulator.faults import Fault
from dqmstream.experiments.simulator.movements import RINGS, Movement, PileupThreshold, Swaying
from dqmstream.experiments.simulator.outside_law import OutsideLaw
from dqmstream.experiments.simulator.patterns import FAMILIES
from dqmstream.lumisection import rbx_mask

FLICKER_DROPS_P, FLICKER_STAYS_OUT_P = 0.1, 0.7
FLICKER_OUT_P = FLICKER_DROPS_P / (FLICKER_DROPS_P + 1 - FLICKER_STAYS_OUT_P)
"""Share of time for which a flickering channel is out."""

_LEAST = 1e-12
"""Parameters of a beta distribution must be positive."""


@dataclass(frozen=True, slots=True, eq=False)
class RunLaw:
    """What moves in a run. Channels are indices among the live ones.

    overdispersion: variance of counts over the binomial one. movements: they share no channel, and are independent.
    thresholds: readout boxes whose response depends on pileup in another way. flickers: channels that are out for
    `FLICKER_OUT_P` of the time, each for itself. trip: (side, n) of the readout box that is off for trip_share of the run.
    lasting: faults that act in the whole run.
    """

    overdispersion: float = 1.0
    movements: tuple[Movement, ...] = ()
    thresholds: tuple[PileupThreshold, ...] = ()
    flickers: tuple[int, ...] = ()
    trip: tuple[int, int] | None = None
    trip_share: float = 0.0
    lasting: tuple[Fault, ...] = ()

    def response(self, rate: np.ndarray, pileup: np.ndarray) -> np.ndarray:
        """Rates of the live channels, (n, 932), without faults and what moves. rate: (932,). pileup: (n,)."""
        rates = np.repeat(rate[None], len(pileup), axis=0)
        for one in self.thresholds:
            rates[:, one.channels] *= one.factor(pileup)[:, None]
        return rates

    def draw_rates(self, rate: np.ndarray, pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As `response`, with what moves."""
        rates = self.response(rate, pileup)
        for movement in self.movements:
            rates[:, movement.channels] *= movement.draw(len(pileup), rng)
        return rates

    def draw_faults(self, lumisections: int, run_number: int, rng: np.random.Generator) -> list[Fault]:
        """The drop-outs of flickering channels, and the trip."""
        faults = []
        for index in self.flickers:
            out = _flicker(lumisections, rng)
            faults.append(Fault("flicker", channel(*CHANNELS[index].tolist()), 0.0, out, run_number))
        if self.trip is not None:
            length = self.trip_lumisections(lumisections)
            off = np.zeros(lumisections, dtype=bool)
            first = int(rng.integers(lumisections - length + 1))
            off[first : first + length] = True
            faults.append(Fault("box", box(*self.trip), 0.0, off, run_number))
        return faults

    def trip_lumisections(self, lumisections: int) -> int:
        """Number of lumisections for which the box is off in a run of that length."""
        return max(1, round(self.trip_share * lumisections))

    def truth(self) -> dict[str, object]:
        """The law, ready for JSON; channels as [ieta, iphi]."""
        flickers = [list(channel(*CHANNELS[index].tolist()).numbers) for index in self.flickers]
        trip = {} if self.trip is None else {"side": self.trip[0], "n": self.trip[1], "share": self.trip_share}
        return {
            "overdispersion": self.overdispersion,
            "movements": [movement.truth() for movement in self.movements],
            "thresholds": [one.truth() for one in self.thresholds],
            "flickers": flickers,
            "trip": trip,
        }


def run_law(outside: OutsideLaw, seed: int, index: int) -> RunLaw:
    """Draw the law of run `index`. Every part has a generator of its own."""
    has, which, picks_boxes, picks_channels, picks_trip = (generator(seed, Purpose.LAW, index, part) for part in range(5))
    overdispersed, moves, threshold, flickers, trips = has.random(5)
    movements: tuple[Movement, ...] = ()
    if moves < outside.pattern_p:
        order = generator(seed, Purpose.PATTERN_FAMILIES, index // len(FAMILIES)).permutation(len(FAMILIES))
        movements = (FAMILIES[order[index % len(FAMILIES)]](which),)
    elif moves < outside.pattern_p + outside.ring_mode_p:
        movements = ring_modes(outside.ring_mode_sigma)
    boxes = _thresholds(outside, picks_boxes) if threshold < outside.threshold_p else ()
    chosen = picks_channels.choice(len(CHANNELS), outside.flickers, replace=False) if flickers < outside.flicker_p else ()
    return RunLaw(
        outside.overdispersion if overdispersed < outside.overdispersion_p else 1.0,
        movements,
        boxes,
        tuple(sorted(int(one) for one in chosen)),
        READOUT_BOXES[int(picks_trip.integers(len(READOUT_BOXES)))] if trips < outside.trip_p else None,
        outside.trip_share,
    )


def ring_modes(sigma: float) -> tuple[Swaying, ...]:
    """All channels of a ring move together, independently of other rings and of the ring on the other side."""
    rings = [side * ring for side in (-1, 1) for ring in RING_RATES]
    members = [np.flatnonzero(ring == RINGS) for ring in rings]
    return tuple(
        Swaying({"kind": "ring", "ieta": ring}, channels, np.ones(len(channels)), sigma)
        for ring, channels in zip(rings, members, strict=True)
    )


def with_faults(rates: np.ndarray, faults: Iterable[Fault]) -> np.ndarray:
    """Multiply the rates of the live channels, (n, 932), by the faults in place, and return them."""
    for fault in faults:
        rates[np.ix_(fault.active, fault.channels[LIVE])] *= fault.factor
    return rates


def concentration(events: np.ndarray, overdispersion: float) -> np.ndarray:
    """a + b of the beta distribution that multiplies the variance of a count out of N events by phi, its overdispersion.

    (N - phi) / (phi - 1), at least 1: a single event has no variance to add.
    """
    return np.maximum((events - overdispersion) / (overdispersion - 1), 1.0)


def draw_law_counts(
    law: RunLaw,
    rate: np.ndarray,
    events: np.ndarray,
    pileup: np.ndarray,
    faults: Iterable[Fault],
    moves: np.random.Generator,
    hits: np.random.Generator,
) -> np.ndarray:
    """Draw the counts of a run: float64, (n, 64, 72).

    rate: without faults, (64, 72). moves, hits: generators for what moves, and for the counts.
    """
    p = probability(with_faults(law.draw_rates(rate[LIVE], pileup, moves), faults), pileup[:, None])
    if law.overdispersion == 1:
        return fire(p, events, hits)
    strength = concentration(events, law.overdispersion)[:, None]
    drawn = hits.beta(np.maximum(p * strength, _LEAST), np.maximum((1 - p) * strength, _LEAST))
    return fire(np.where(p > 0, drawn, 0.0), events, hits)


def _thresholds(outside: OutsideLaw, rng: np.random.Generator) -> tuple[PileupThreshold, ...]:
    boxes = []
    for which in rng.choice(len(READOUT_BOXES), outside.threshold_boxes, replace=False):
        side, n = READOUT_BOXES[which]
        threshold, size, sign = (
            rng.uniform(*outside.threshold_range),
            rng.uniform(*outside.threshold_slope),
            rng.choice((-1, 1)),
        )
        channels = np.flatnonzero(rbx_mask(side, n)[LIVE])
        boxes.append(PileupThreshold(side, n, channels, float(threshold), float(sign * size)))
    return tuple(boxes)


def _flicker(lumisections: int, rng: np.random.Generator) -> np.ndarray:
    """Lumisections in which a flickering channel is out: bool, (n,). A stationary Markov chain."""
    out = np.zeros(lumisections, dtype=bool)
    p = FLICKER_OUT_P
    for i, uniform in enumerate(rng.random(lumisections)):
        out[i] = uniform < p
        p = FLICKER_STAYS_OUT_P if out[i] else FLICKER_DROPS_P
    return out
