"""Conditions of a run: its number, its fill, and the events N and pileup R of each lumisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import fills
from dqmstream.experiments.simulator.draws import CORRELATION, Purpose, ar1, generator, run_generators
from dqmstream.experiments.simulator.streams import NamedStream
from dqmstream.lumisection import MAX_NUMBER

EVENTS_MEDIAN, EVENTS_SIGMA, EVENTS_RANGE = 1250.0, 0.2, (600.0, 2600.0)
PILEUP_START, PILEUP_END, PILEUP_SIGMA = 7.0, 3.0, 0.06

TRUNCATED_P, TRUNCATED_RANGE = 0.005, (0.1, 0.6)
"""Probability that a lumisection is truncated, and the fraction of its events that is then left (chosen)."""

FIRST_RUN = 355400
RUN_GAP_MEDIAN, RUN_GAP_SIGMA = 25.0, 1.0
"""Run numbers step by 1 plus a lognormal number, since most runs of a detector are not kept for monitoring."""

NUMBERS_PER_RUN = 40
"""In a lazy stream each run takes one number out of a block of so many."""

FILL_BLOCK, FILL_ENDS_P = 4, 0.5
"""Runs in a block that is cut into fills, and the probability of a cut between two of them (chosen)."""

MOVING_EVENTS_SIGMA, MOVING_EVENTS_RANGE, MOVING_EVENTS_SIGMA_WITHIN = 0.3, (700.0, 2200.0), 0.1
MOVING_PILEUP_START = (2.0, 14.0)
"""For `tracks`: spread and range of the median of N over runs, spread of N within a run, range of R at the start (chosen)."""

PUBLISHED = (
    {"events": 1510.0, "events_fall": 0.02, "events_sigma": 0.025, "pileup": 1.0, "pileup_fall": 0.1},
    {"events": 942.0, "events_fall": 0.14, "events_sigma": 0.01, "pileup": 12.0, "pileup_fall": 0.2},
)
"""Runs 355456 and 357479: N and R in the middle (measured), how far they fall around it, and the spread of N (both chosen to
give the published maxima and standard deviations)."""


@dataclass(frozen=True, slots=True, eq=False)
class Luminosity:
    """Luminosity of a run before noise is added.

    events: median of N, a number or (n,). events_sigma: spread of log N. pileup: R without noise, (n,). integrated_fb:
    luminosity delivered before the run, in fb^-1. truth: what was drawn, ready for JSON. live: live fraction, (n,), where the
    conditions are those of data taking: events is then a Poisson number and pileup is final; None elsewhere. measured: events,
    (n,), and pileup are final; pileup is nan where unknown, and events are then 0.
    """

    events: np.ndarray | float
    events_sigma: float
    pileup: np.ndarray
    integrated_fb: float = 0.0
    truth: dict[str, Any] = field(default_factory=dict)
    live: np.ndarray | None = None
    measured: bool = False


def luminosity(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    """The luminosity of run `index` of a stream."""
    return _LUMINOSITIES[named.luminosity](named, seed, index, lumisections)


def run_length(named: NamedStream, seed: int, index: int, lumisections: int | None) -> int:
    """Lumisections of a run. lumisections: as asked for; None for the stream's own. A run of fills is cut to so many."""
    if named.luminosity == "fills":
        own = fills.own_length(seed, index)
        return own if lumisections is None else min(own, lumisections)
    return named.length(index) if lumisections is None else lumisections


def draw_conditions(path: Luminosity, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[dict[str, object]]]:
    """Draw events and pileup of each lumisection, (n,) each, and the truncated lumisections with their fractions."""
    if path.measured:
        events = np.asarray(path.events, dtype=np.float64)
        return events, path.pileup, _truncated(events)
    if path.live is not None:
        mean = path.events * path.live
        return rng.poisson(mean).astype(np.float64), path.pileup, _truncated(mean)
    lumisections = len(path.pileup)
    events = np.round(np.clip(path.events * np.exp(path.events_sigma * ar1(lumisections, rng)), *EVENTS_RANGE))
    pileup = path.pileup * np.exp(PILEUP_SIGMA * ar1(lumisections, rng))
    short = rng.random(lumisections) < TRUNCATED_P
    fraction = rng.uniform(*TRUNCATED_RANGE, lumisections)
    events[short] = np.round(events[short] * fraction[short])
    truncated: list[dict[str, object]] = [
        {"lumisection": int(row) + 1, "fraction": float(f"{fraction[row]:.5g}")} for row in np.flatnonzero(short)
    ]
    return events, pileup, truncated


def _truncated(events: np.ndarray) -> list[dict[str, object]]:
    """Lumisections below .6 times the median of the run, events or their means, (n,). Empty ones are not called truncated."""
    lit = events > 0
    fraction = events / (np.median(events[lit]) if lit.any() else 1.0)
    return [
        {"lumisection": int(row) + 1, "fraction": float(f"{fraction[row]:.5g}")}
        for row in np.flatnonzero(lit & (fraction < TRUNCATED_RANGE[1]))
    ]


def chosen(named: NamedStream) -> dict[str, object]:
    """The constants of a stream's conditions, for the head of truth.json."""
    if named.luminosity == "fills":
        return fills.constants()
    events: dict[str, object] = {"median": EVENTS_MEDIAN, "log_sigma": EVENTS_SIGMA, "range": EVENTS_RANGE}
    pileup: dict[str, object] = {"start": PILEUP_START, "end": PILEUP_END, "log_sigma": PILEUP_SIGMA}
    common = {"correlation": CORRELATION, "truncated": {"probability": TRUNCATED_P, "fraction": TRUNCATED_RANGE}}
    if named.luminosity == "fill":
        return {"events": events, "pileup": pileup, "fills": {"block_runs": FILL_BLOCK, "cut": FILL_ENDS_P}, **common}
    if named.luminosity == "moving":
        events |= {"log_sigma_of_median": MOVING_EVENTS_SIGMA, "range_of_median": MOVING_EVENTS_RANGE}
        events |= {"log_sigma": MOVING_EVENTS_SIGMA_WITHIN}
        pileup = {"start": MOVING_PILEUP_START, "end_over_start": PILEUP_END / PILEUP_START, "log_sigma": PILEUP_SIGMA}
    if named.luminosity == "published":
        return {"published": PUBLISHED, "events": {"range": EVENTS_RANGE}, "pileup": {"log_sigma": PILEUP_SIGMA}, **common}
    return {"events": events, "pileup": pileup, **common}


def run_numbers(named: NamedStream, seed: int, runs: int, first_run: int = FIRST_RUN) -> list[int]:
    """Numbers of the runs, ascending from first_run with irregular gaps. Raises InputError for numbers out of range."""
    if named.run_numbers:
        return list(named.run_numbers[:runs])
    if named.lazy:
        numbers = [lazy_run_number(seed, index, first_run) for index in range(runs)]
    else:
        numbers = [first_run]
        for index in range(1, runs):
            gap = run_generators(seed, index)[0].lognormal(np.log(RUN_GAP_MEDIAN), RUN_GAP_SIGMA)
            numbers.append(numbers[-1] + 1 + int(gap))
    check_run_numbers(numbers[0], numbers[-1])
    return numbers


def check_run_numbers(first: int, last: int) -> None:
    """Raise InputError unless all numbers from first to last are valid run numbers."""
    if first < 1 or last > MAX_NUMBER:
        raise InputError(f"run numbers {first}..{last} are not in 1..{MAX_NUMBER}: choose another first run")


def lazy_run_number(seed: int, index: int, first_run: int = FIRST_RUN) -> int:
    """Number of a run of a lazy stream: drawn from its block of 40; the first run has the first number."""
    within = int(generator(seed, Purpose.NUMBER, index).random() * NUMBERS_PER_RUN) if index else 0
    return first_run + NUMBERS_PER_RUN * index + within


def _every_run_alike(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    return Luminosity(EVENTS_MEDIAN, EVENTS_SIGMA, np.linspace(PILEUP_START, PILEUP_END, lumisections))


def _fill(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    """A part of a fill, or all of it. Time t is in runs since the start of the fill.

    R(t) = 7 / (1 + a t / T)**2 in a fill of T runs, falling from 7 to 3. Luminosity is the integral of R, normalised to the
    stream's mean per run.
    """
    block, place = divmod(index, FILL_BLOCK)
    cuts = generator(seed, Purpose.LUMINOSITY, block).random(FILL_BLOCK - 1) < FILL_ENDS_P
    starts = [0, *(int(i) + 1 for i in np.flatnonzero(cuts)), FILL_BLOCK]
    number = max(i for i, start in enumerate(starts) if start <= place)
    runs, before = starts[number + 1] - starts[number], place - starts[number]
    a = np.sqrt(PILEUP_START / PILEUP_END) - 1
    time = before + np.linspace(0, 1, lumisections)
    integral = before * (1 + a) / (1 + a * before / runs)
    integrated_fb = named.luminosity_per_run_fb * (FILL_BLOCK * block + starts[number] + integral)
    fill = {"number": FILL_BLOCK * block + number + 1, "run_of_fill": before + 1, "runs": runs}
    return Luminosity(
        EVENTS_MEDIAN, EVENTS_SIGMA, PILEUP_START / (1 + a * time / runs) ** 2, float(integrated_fb), {"fill": fill}
    )


def _moving(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    rng = generator(seed, Purpose.LUMINOSITY, index)
    events = float(np.clip(EVENTS_MEDIAN * np.exp(MOVING_EVENTS_SIGMA * rng.standard_normal()), *MOVING_EVENTS_RANGE))
    start = float(np.exp(rng.uniform(*np.log(MOVING_PILEUP_START))))
    path = np.linspace(start, start * PILEUP_END / PILEUP_START, lumisections)
    drawn = {"events_median": float(f"{events:.5g}"), "pileup_start": float(f"{start:.5g}")}
    return Luminosity(events, MOVING_EVENTS_SIGMA_WITHIN, path, named.luminosity_per_run_fb * index, drawn)


def _published(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    run = PUBLISHED[index]
    falling = np.linspace(1, -1, lumisections)
    return Luminosity(
        run["events"] * (1 + run["events_fall"] * falling),
        run["events_sigma"],
        run["pileup"] * (1 + run["pileup_fall"] * falling),
    )


def _fills(named: NamedStream, seed: int, index: int, lumisections: int) -> Luminosity:
    run = fills.lumisections_of_run(seed, index, lumisections)
    return Luminosity(run.events, 0.0, run.pileup, truth=run.truth, live=run.live)


_LUMINOSITIES: dict[str, Callable[[NamedStream, int, int, int], Luminosity]] = {
    "run": _every_run_alike,
    "fill": _fill,
    "moving": _moving,
    "published": _published,
    "fills": _fills,
}
