"""A simulated run: its counts, its conditions, and the truth about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.detector import LIVE, fire, probability
from dqmstream.experiments.simulator.faults import Fault, apply
from dqmstream.experiments.simulator.run_law import RunLaw, with_faults
from dqmstream.lumisection import N_IETA, N_IPHI


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """One run of n lumisections, numbered from 1.

    counts: whole numbers as float64, (n, 64, 72). events: N of each lumisection, whole numbers as float64, (n,). pileup: R of
    each lumisection, (n,), in units of the R of run 355456; in `campaign` the mean pileup, as OMS gives it. rate: true rate of
    each channel per unit of pileup with all gains of this run, (64, 72), zero where there is no channel. truth: what differs in
    this run, ready for JSON (see `write`). faults: all faults of the run. faults_within: some faults begin and end within the
    run (`tracks`, streams with a `law`), and `rate` and `expected` omit all; in other streams every fault lasts the whole run
    and is part of `rate`. law: what else moves within the run, in streams outside the law of gains.

    The exact likelihood of a lumisection is a product over the live channels, Binomial(events, p):

    * `null`, `moderate`, `small`, `year`, `pair`, `campaign`: p = probability(rate, pileup) = expected / events;
    * `structured`: the same given the gains of the noisy boxes of truth["common_mode"]; each is Normal(1, sigma) in each
      lumisection, independent of all else, multiplies the rate of the box, and must be integrated out;
    * `tracks`: p = expected_with_faults / events with the faults of the lumisection, expected / events without.

    In streams with a `law` it is what `dqmstream.experiments.benchmark.bounds` computes.
    """

    run: int
    counts: np.ndarray
    events: np.ndarray
    pileup: np.ndarray
    rate: np.ndarray
    truth: dict[str, Any]
    faults: tuple[Fault, ...] = ()
    faults_within: bool = False
    law: RunLaw | None = None

    def expected(self, events: np.ndarray, pileup: np.ndarray) -> np.ndarray:
        """Mean counts for `rate` under any conditions: (m, 64, 72) for events and pileup of shape (m,).

        The movements of a `law` are left out; they change the mean by the square of their size.
        """
        events, pileup = np.asarray(events), np.asarray(pileup)
        if self.law is None:
            return np.asarray(events[:, None, None] * probability(self.rate, pileup[:, None, None]))
        mean = np.zeros((len(events), N_IETA, N_IPHI))
        mean[:, LIVE] = events[:, None] * probability(self.law.response(self.rate[LIVE], pileup), pileup[:, None])
        return mean

    def expected_with_faults(self) -> np.ndarray:
        """True mean counts of the run's own lumisections with their faults, (n, 64, 72)."""
        if not self.faults_within:
            return self.expected(self.events, self.pileup)
        mean = np.zeros(self.counts.shape)
        if self.law is not None:
            rates = with_faults(self.law.response(self.rate[LIVE], self.pileup), self.faults)
            p = probability(rates, self.pileup[:, None])
        else:
            p = faulty_probability(self.rate, self.pileup, self.faults)
        mean[:, LIVE] = self.events[:, None] * p
        return mean

    @property
    def live(self) -> np.ndarray:
        """The channels of the map: bool, in the shape of `rate`."""
        return LIVE

    @property
    def faulty(self) -> np.ndarray:
        """Whether each lumisection has a fault: bool, (n,)."""
        faulty = np.zeros(len(self.events), dtype=bool)
        for fault in self.faults:
            faulty |= fault.active
        return faulty

    def faulty_channels(self) -> np.ndarray:
        """Which channels have a fault in each lumisection: bool, (n, 64, 72)."""
        channels = np.zeros((len(self.events), *self.live.shape), dtype=bool)
        for fault in self.faults:
            channels[fault.active] |= fault.channels
        return channels

    def redraw(self, rate: np.ndarray, rng: np.random.Generator) -> SimulatedRun:
        """Draw new counts under the conditions and with the faults of this run, for a detector of another rate, (64, 72).

        Raises InputError for a stream whose faults are part of the rate.
        """
        if not self.faults_within or self.law is not None:
            raise InputError(f"run {self.run} cannot be redrawn, since its faults are part of its rate: give a run of tracks")
        counts = fire(faulty_probability(rate, self.pileup, self.faults), self.events, rng)
        return replace(self, counts=counts, rate=rate)


def faulty_probability(rate: np.ndarray, pileup: np.ndarray, faults: tuple[Fault, ...]) -> np.ndarray:
    """Probability that each live channel fires in an event, with its faults, in each lumisection: (n, 932).

    rate: without faults, (64, 72). pileup: (n,).
    """
    rates, on_count = apply(faults, rate, len(pileup))
    return np.minimum(probability(rates, pileup[:, None]) * on_count, 1.0)
