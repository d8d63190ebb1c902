"""Conditions of data taking: LHC fills cut into runs, with the pileup, live fraction and status flags of each lumisection.

Measured in OMS and trigger tables of 2022 to 2025: the ranges of pileup, the levels of N, shares of truncated and empty
lumisections, and lengths of runs. Chosen: their distributions within these ranges, and how long a fill and an era last.

A fill is a list of lumisections, and its runs cut the list into pieces. So run lengths, ramps, levelled runs and falling ones
come out as in data taking, and luminosity tells some runs apart: those of different eras, and those that fall at different
times of a fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dqmstream.experiments.simulator.draws import Purpose, generator

ERAS = (1236.0, 1100.0, 1860.0, 3340.0, 3840.0)
"""Events of a lumisection at a live fraction of 1, era by era (measured: early 2024, most of 2024, and 2025)."""

ERA_FILLS = 2
"""Fills of an era (chosen; real eras last months). After the last era the first one follows."""

MEDIAN_LENGTH, LENGTH_SIGMA, SHORTEST, LONGEST = 58.0, 1.5, 6, 2800
"""Lumisections of a run: a lognormal number within limits (fitted to 213 runs of 2024). The end of a fill ends its last run."""

PLATEAU = (45.0, 48.0)
"""Pileup while the beams are adjusted, before levelling (measured)."""

LEVEL, LEVEL_STEP, LEVEL_NOISE = (61.5, 64.0), 1.0, 0.1
"""Pileup under levelling: its middle, the step up at which it is corrected after it has sunk as far, and its noise (measured).
Together it stays within .3 (standard deviation) of the middle."""

FALL_END, FALL_NOISE = (32.0, 54.0), 0.003
"""Pileup at the end of a fill, and its relative noise (measured)."""

LEVEL_LENGTH, FALL_LENGTH = (300, 1600), (200, 1100)
"""Lumisections of levelling, 2 to 10 hours, and of the fall, 1.3 to 7 hours (chosen)."""

DIPS, DIP_FACTOR = (9, 14), (0.03, 0.65)
"""Lumisections of a ramp in which the beams are displaced for a scan, and the factor on pileup (measured)."""

DEAD_TIME, DEAD_TIME_AT_62, LIVE_NOISE = 0.015, 0.03, 0.004
"""Dead time without pileup, what a pileup of 62 adds (quadratic in between), and its noise (measured)."""

PAUSE_P, PAUSE_LIVE = (0.005, 0.04), (0.7, 0.82)
"""Probability of a lumisection in which data taking pauses for seconds, and its live fraction (measured)."""

TRUNCATED_P, MANY_TRUNCATED_P, MANY_TRUNCATED_RUNS_P, TRUNCATED_LIVE = (0.002, 0.025), (0.025, 0.09), 0.1, (0.05, 0.55)
"""Probability of a truncated lumisection in a run, in one run of ten a larger one, and the live fraction left (measured)."""

EMPTY_MEAN, EMPTY_LENGTH, EMPTY_MOST = 4.0, 200, 22
"""Empty lumisections of a run: exponential, with a mean that grows with the run up to that length, and a maximum (measured)."""

CAUSES = ("cms_active", "hbhea_ready", "hbheb_ready", "hbhec_ready")
CAUSES_P = (0.7, 0.1, 0.1, 0.1)
"""The flag that is false in an empty lumisection: data taking is stopped, or a third of HB and HE is not ready (chosen)."""


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """A fill of the LHC. pileup: of each lumisection, (n,). stable: the first lumisection with stable beams, from 0.

    starts: first lumisection of each run, from 0, ascending; the first is 0. The last run ends with the fill.
    """

    number: int
    pileup: np.ndarray
    stable: int
    starts: tuple[int, ...]

    def run(self, place: int) -> slice:
        """Lumisections of run `place` (from 0) of the fill."""
        ends = (*self.starts[1:], len(self.pileup))
        return slice(self.starts[place], ends[place])

    @property
    def events(self) -> float:
        """N at a live fraction of 1."""
        return ERAS[self.era]

    @property
    def era(self) -> int:
        """Index of the era in `ERAS`."""
        return self.number // ERA_FILLS % len(ERAS)


@lru_cache(maxsize=2048)
def fill(seed: int, number: int) -> Fill:
    """Draw fill `number`, from 0."""
    rng = generator(seed, Purpose.FILL, number)
    level = rng.uniform(*LEVEL)
    climb, stable = ramp(level, rng)
    flat = levelled(level, int(rng.integers(*LEVEL_LENGTH)), rng)
    length = int(rng.integers(*FALL_LENGTH))
    pileup = np.concatenate([climb, flat, fall(level, rng.uniform(*FALL_END), length, rng)])
    pileup.setflags(write=False)
    starts = [0]
    while True:
        own = float(np.clip(rng.lognormal(np.log(MEDIAN_LENGTH), LENGTH_SIGMA), SHORTEST, LONGEST))
        start = starts[-1] + round(own)
        if start + SHORTEST > len(pileup):
            return Fill(number, pileup, stable, tuple(starts))
        starts.append(start)


def fill_of_run(seed: int, index: int) -> tuple[Fill, int]:
    """The fill of run `index` of the stream, and the run's place in the fill; both from 0."""
    number = 0
    while index >= len((found := fill(seed, number)).starts):
        index -= len(found.starts)
        number += 1
    return found, index


def own_length(seed: int, index: int) -> int:
    """Lumisections of run `index`."""
    found, place = fill_of_run(seed, index)
    piece = found.run(place)
    return piece.stop - piece.start


@dataclass(frozen=True, slots=True, eq=False)
class Lumisections:
    """What is known of the n lumisections of a run.

    events: N at a live fraction of 1. pileup, live: (n,); live is 0 in an empty lumisection. truth: fill, era, flags and live
    fraction, ready for JSON.
    """

    events: float
    pileup: np.ndarray
    live: np.ndarray
    truth: dict[str, Any]


def lumisections_of_run(seed: int, index: int, lumisections: int) -> Lumisections:
    """The first lumisections of run `index`; all of them if it has no more."""
    found, place = fill_of_run(seed, index)
    piece = found.run(place)
    pileup = found.pileup[piece]
    rng = generator(seed, Purpose.LUMINOSITY, index)
    live = live_fractions(pileup, rng)
    flags = {name: np.ones(len(pileup), dtype=bool) for name in CAUSES}
    empty = empty_lumisections(len(pileup), rng)
    for row, cause in zip(empty, rng.choice(CAUSES, len(empty), p=CAUSES_P), strict=True):
        live[row] = 0.0
        flags[cause][row] = False
    flags = {"beams_stable": np.arange(piece.start, piece.stop) >= found.stable, **flags}
    pileup, live = pileup[:lumisections], live[:lumisections]
    truth = {
        "fill": {"number": found.number + 1, "run_of_fill": place + 1, "runs": len(found.starts)},
        "era": {"number": found.era + 1, "events": found.events},
        "lumisections": len(pileup),
        "live": [float(f"{value:.4g}") for value in live],
        "flags": {name: ranges(flag[:lumisections]) for name, flag in flags.items()},
    }
    return Lumisections(found.events, pileup, live, truth)


def ranges(flag: np.ndarray) -> list[list[int]]:
    """Lumisections in which a flag is true, as inclusive ranges of numbers from 1."""
    edges = np.flatnonzero(np.diff(flag.astype(np.int8), prepend=0, append=0))
    return [[int(first) + 1, int(stop)] for first, stop in edges.reshape(-1, 2)]


def constants() -> dict[str, object]:
    """The constants of this module, for the head of truth.json."""
    return {
        "eras": {"events": ERAS, "fills": ERA_FILLS},
        "run_length": {"median": MEDIAN_LENGTH, "log_sigma": LENGTH_SIGMA, "range": (SHORTEST, LONGEST)},
        "pileup": {
            "plateau": PLATEAU,
            "level": LEVEL,
            "level_step": LEVEL_STEP,
            "level_noise": LEVEL_NOISE,
            "fall_end": FALL_END,
            "fall_noise": FALL_NOISE,
            "level_length": LEVEL_LENGTH,
            "fall_length": FALL_LENGTH,
            "dips": DIPS,
            "dip_factor": DIP_FACTOR,
        },
        "live": {
            "dead_time": DEAD_TIME,
            "dead_time_at_62": DEAD_TIME_AT_62,
            "noise": LIVE_NOISE,
            "pause": {"probability": PAUSE_P, "live": PAUSE_LIVE},
        },
        "truncated": {
            "probability": TRUNCATED_P,
            "in_a_tenth_of_the_runs": MANY_TRUNCATED_P,
            "live": TRUNCATED_LIVE,
        },
        "empty": {"mean": EMPTY_MEAN, "of_length": EMPTY_LENGTH, "most": EMPTY_MOST},
    }


def ramp(level: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Pileup from the first collisions to levelling: 61 to 97 lumisections; and the first of them with stable beams.

    It rises from 1, stays at a plateau while the beams are adjusted and scanned, and rises to the level.
    """
    plateau = rng.uniform(*PLATEAU)
    rise = np.linspace(1.0, plateau, rng.integers(4, 9))
    adjusted = np.full(rng.integers(8, 17), plateau)
    dips = int(rng.integers(DIPS[0], DIPS[1] + 1))
    scan = np.full(dips + 5, plateau)
    scan[rng.permutation(len(scan))[:dips]] *= rng.uniform(*DIP_FACTOR, dips)
    waits = np.full(rng.integers(15, 26), plateau)
    climb = np.linspace(plateau, level, rng.integers(20, 31))
    pileup = np.concatenate([rise, adjusted, scan, waits, climb])
    return pileup * np.exp(FALL_NOISE * rng.standard_normal(len(pileup))), len(rise) + len(adjusted)


def levelled(level: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Pileup that sinks slowly and is set up again every 10 to 20 lumisections."""
    period = rng.integers(10, 21)
    saw = LEVEL_STEP * (0.5 - (np.arange(length) % period) / period)
    return np.asarray(level + saw + LEVEL_NOISE * rng.standard_normal(length))


def fall(start: float, end: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Pileup that burns off from start to end as 1 / (1 + t)**2, (length,)."""
    a = np.sqrt(start / end) - 1
    return np.asarray(start / (1 + a * np.linspace(0, 1, length)) ** 2 * np.exp(FALL_NOISE * rng.standard_normal(length)))


def live_fractions(pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Live fraction (recorded over delivered luminosity) of each lumisection of a run without empty ones, (n,)."""
    n = len(pileup)
    live = 1 - DEAD_TIME - DEAD_TIME_AT_62 * (pileup / 62) ** 2 - LIVE_NOISE * rng.exponential(size=n)
    paused = rng.random(n) < rng.uniform(*PAUSE_P)
    live[paused] = rng.uniform(*PAUSE_LIVE, int(paused.sum()))
    many = rng.random() < MANY_TRUNCATED_RUNS_P
    share = rng.uniform(*MANY_TRUNCATED_P) if many else np.exp(rng.uniform(*np.log(TRUNCATED_P)))
    truncated = rng.random(n) < share
    live[truncated] = rng.uniform(*TRUNCATED_LIVE, int(truncated.sum()))
    return np.asarray(live)


def empty_lumisections(lumisections: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the empty lumisections of a run of that length."""
    mean = EMPTY_MEAN * min(1.0, lumisections / EMPTY_LENGTH)
    return rng.permutation(lumisections)[: min(int(rng.exponential(mean)), EMPTY_MOST, lumisections // 4)]
