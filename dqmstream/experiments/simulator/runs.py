"""Runs drawn one at a time: conditions, the detector's history, faults, and the counts that come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.conditions import (
    FIRST_RUN,
    check_run_numbers,
    draw_conditions,
    lazy_run_number,
    luminosity,
    run_numbers,
)
from dqmstream.experiments.simulator.detector import (
    LIVE,
    common_mode,
    draw_counts,
    fingerprint,
    fire,
    noisy_boxes,
    nominal_rate,
    probability,
)
from dqmstream.experiments.simulator.draws import run_generators
from dqmstream.experiments.simulator.faults import Fault, apply
from dqmstream.experiments.simulator.history import History, history
from dqmstream.experiments.simulator.streams import NamedStream, named_stream
from dqmstream.lumisection import N_IETA, N_IPHI


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """One run of n lumisections, numbered from 1.

    counts: float64 whole numbers, (n, 64, 72). events: N of each lumisection, float64 whole numbers, (n,). pileup:
    R of each lumisection, (n,); it acts like pileup, and its unit is the R of run 355456. rate: true rate of each
    channel per unit of R with all gains of this run, (64, 72), zero where there is no channel. truth: what is
    different in this run, ready for JSON (see `write`). faults: all faults of the run. faults_within: they come and go
    within the run (`tracks`); `rate` and `expected` are then without them. Elsewhere every fault lasts the whole run and
    is in `rate`.

    The exact likelihood of a lumisection is a product over the live channels, Binomial(events, p):

    * `null`, `moderate`, `small`, `year`, `pair`: p = probability(rate, pileup) = expected / events;
    * `structured`: the same given the gains of the noisy boxes of truth["common_mode"]; each is Normal(1, sigma) in each
      lumisection, independent of all else, multiplies the rate of the box, and is to be integrated out;
    * `tracks`: p = expected_with_faults / events for the lumisection as it is, expected / events had it been good.
    """

    run: int
    counts: np.ndarray
    events: np.ndarray
    pileup: np.ndarray
    rate: np.ndarray
    truth: dict[str, Any]
    faults: tuple[Fault, ...] = ()
    faults_within: bool = False

    def expected(self, events: np.ndarray, pileup: np.ndarray) -> np.ndarray:
        """Mean counts that `rate` gives under any conditions: (m, 64, 72) for events and pileup (m,)."""
        return np.asarray(events)[:, None, None] * probability(self.rate, np.asarray(pileup)[:, None, None])

    def expected_with_faults(self) -> np.ndarray:
        """True mean counts of the run's own lumisections with all that was wrong in each, (n, 64, 72)."""
        if not self.faults_within:
            return self.expected(self.events, self.pileup)
        mean = np.zeros(self.counts.shape)
        mean[:, LIVE] = self.events[:, None] * _faulty_probability(self.rate, self.pileup, self.faults)
        return mean

    @property
    def faulty(self) -> np.ndarray:
        """Whether each lumisection has a fault, bool (n,)."""
        faulty = np.zeros(len(self.events), dtype=bool)
        for fault in self.faults:
            faulty |= fault.active
        return faulty

    def faulty_channels(self) -> np.ndarray:
        """Which channels have a fault in each lumisection, bool (n, 64, 72); `faults` is the same as a list."""
        channels = np.zeros((len(self.events), N_IETA, N_IPHI), dtype=bool)
        for fault in self.faults:
            channels |= fault.active[:, None, None] & fault.channels
        return channels

    def again(self, rate: np.ndarray, rng: np.random.Generator) -> SimulatedRun:
        """The run's conditions and faults once more, on a detector of another rate (64, 72): counts are drawn anew.

        Raises InputError where faults are in the rate itself.
        """
        if not self.faults_within:
            raise InputError(f"the faults of run {self.run} are part of its rate: only a run of `tracks` can be had again")
        counts = fire(_faulty_probability(rate, self.pileup, self.faults), self.events, rng)
        return replace(self, counts=counts, rate=rate)


def stream(
    name: str, *, seed: int, runs: int | None = None, lumisections: int | None = None, first_run: int = FIRST_RUN
) -> Iterator[SimulatedRun]:
    """The runs of a named stream, drawn one at a time as they are asked for; none is held.

    runs, lumisections: how many, by default the stream's own. first_run: number of the first; `pair` has its own. Raises
    InputError at once for a name that does not exist, fewer than one run or lumisection, a negative seed, and more runs
    than the stream has.
    """
    named, numbers = checked(name, seed, runs, lumisections, first_run)
    return draw_runs(named, seed, numbers, lumisections)


def simulated_run(
    name: str, index: int, *, seed: int, lumisections: int | None = None, first_run: int = FIRST_RUN
) -> SimulatedRun:
    """Run `index` (from 0) of a named stream, the same bits as `stream` gives.

    In `year` and `tracks` any run costs about the same; in the others it costs the steps of the runs before it, though not
    their counts. Raises InputError as `stream` does.
    """
    named, numbers = _checked_alone(name, index, seed, lumisections, first_run)
    return _draw(named, seed, index, lumisections, numbers, history(named, seed, numbers))


def checked(
    name: str, seed: int, runs: int | None, lumisections: int | None, first_run: int = FIRST_RUN
) -> tuple[NamedStream, list[int]]:
    """The stream and its run numbers, or InputError."""
    named = named_stream(name)
    runs = named.runs if runs is None else runs
    _check(named, seed, runs, lumisections)
    return named, run_numbers(named, seed, runs, first_run)


def draw_runs(named: NamedStream, seed: int, numbers: list[int], lumisections: int | None) -> Iterator[SimulatedRun]:
    """The runs of those numbers, one after another."""
    detector = history(named, seed, numbers.__getitem__)
    for index in range(len(numbers)):
        yield _draw(named, seed, index, lumisections, numbers.__getitem__, detector)


def _checked_alone(
    name: str, index: int, seed: int, lumisections: int | None, first_run: int
) -> tuple[NamedStream, Callable[[int], int]]:
    named = named_stream(name)
    if index < 0:
        raise InputError(f"runs are counted from 0, not {index}")
    _check(named, seed, index + 1, lumisections)
    if named.lazy:
        check_run_numbers(first_run, lazy_run_number(seed, index, first_run))
        return named, lambda i: lazy_run_number(seed, i, first_run)
    return named, run_numbers(named, seed, index + 1, first_run).__getitem__


def _check(named: NamedStream, seed: int, runs: int, lumisections: int | None) -> None:
    length = named.length(0) if lumisections is None else lumisections
    for what, value, least in (("runs", runs, 1), ("lumisections", length, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{what} must be {least} or more, not {value}")
    if named.most_runs is not None and runs > named.most_runs:
        raise InputError(f"the stream {named.name} has {named.most_runs} different runs at most, not {runs}: ask for fewer")


def _draw(
    named: NamedStream,
    seed: int,
    index: int,
    lumisections: int | None,
    run_number: Callable[[int], int],
    detector: History,
) -> SimulatedRun:
    path = luminosity(named, seed, index, named.length(index) if lumisections is None else lumisections)
    _, _, conditions, hits = run_generators(seed, index)
    gain, faults = detector.at(index, path)
    if not named.within_runs:
        for fault in faults:
            gain = np.where(fault.channels, gain * fault.factor, gain)
    rate = nominal_rate() * fingerprint(seed) * gain
    boxes = noisy_boxes(named.noisy_boxes, seed, index)
    events, pileup, truncated = draw_conditions(path, conditions)
    if named.within_runs:
        counts = fire(_faulty_probability(rate, pileup, tuple(faults)), events, hits)
    else:
        moving = common_mode(rate, boxes, named.noise_sigma, len(events), hits) if boxes else rate
        counts = draw_counts(moving, events, pileup, hits)
    whole = [] if named.within_runs else faults
    return SimulatedRun(
        run=run_number(index),
        counts=counts,
        events=events,
        pileup=pileup,
        rate=rate,
        truth={
            "run": run_number(index),
            "gain": compact(gain),
            "dead": [dict(zip(("ieta", "iphi"), fault.place.numbers, strict=True)) for fault in whole if fault.kind == "dead"],
            "rbx": [
                dict(zip(("side", "n"), fault.place.numbers, strict=True)) | {"factor": fault.factor}
                for fault in whole
                if fault.kind == "box"
            ],
            "common_mode": [{"side": side, "n": n, "sigma": named.noise_sigma} for side, n in boxes],
            "truncated": truncated,
            "faults": [fault.truth() for fault in faults],
            **path.truth,
        },
        faults=tuple(faults),
        faults_within=named.within_runs,
    )


def _faulty_probability(rate: np.ndarray, pileup: np.ndarray, faults: tuple[Fault, ...]) -> np.ndarray:
    """Probability that each live channel fires in an event of each lumisection, (n, 932); rate (64, 72) without faults."""
    rates, on_count = apply(faults, rate, len(pileup))
    return np.minimum(probability(rates, pileup[:, None]) * on_count, 1.0)


def compact(cells: np.ndarray) -> list[float]:
    """Values of the live channels in row-major order, 5 significant digits."""
    return [float(f"{value:.5g}") for value in cells[LIVE]]
