"""Stretches of a fill of one kind, for runs whose conditions are chosen: a ramp, levelling, a fall, its end, low pileup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import fills
from dqmstream.experiments.simulator.detector import fingerprint, nominal_rate
from dqmstream.experiments.simulator.streams import PILEUP_PER_R

EVENTS = (1100.0, 3800.0)
"""Range of N at a live fraction of 1 over eras (measured); a stretch has one drawn from it, uniform in the logarithm."""

LOW_PILEUP = (1.0, 8.0)
"""Pileup of fills with few bunches (measured)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Events, whole numbers as float64, and pileup of n lumisections, (n,) each."""

    events: np.ndarray
    pileup: np.ndarray


def stretch(
    kind: str, lumisections: int, rng: np.random.Generator, *, events: float | None = None, empty: int | None = None
) -> Stretch:
    """Draw the conditions of lumisections in a row.

    kind: a name of `KINDS`. events: N at a live fraction of 1, drawn from `EVENTS` by default. empty: number of empty
    lumisections, drawn as in a run of `campaign` by default. Raises InputError for another kind.
    """
    if kind not in KINDS:
        raise InputError(f"there is no stretch {kind!r} of a fill: choose one of {', '.join(KINDS)}")
    pileup = KINDS[kind](lumisections, rng)
    live = fills.live_fractions(pileup, rng)
    some = fills.empty_lumisections(lumisections, rng) if empty is None else rng.permutation(lumisections)[:empty]
    live[some] = 0.0
    constant = float(np.exp(rng.uniform(*np.log(EVENTS)))) if events is None else events
    return Stretch(rng.poisson(constant * live).astype(np.float64), pileup)


def rate_per_pileup(seed: int) -> np.ndarray:
    """Rate of each channel of HE depth 1 per unit of pileup, as in the first run of `campaign`: (64, 72)."""
    return nominal_rate() / PILEUP_PER_R * fingerprint(seed, off_their_ring=True)


def _ramp(n: int, rng: np.random.Generator) -> np.ndarray:
    level = rng.uniform(*fills.LEVEL)
    return np.concatenate([fills.ramp(level, rng)[0], fills.levelled(level, n, rng)])[:n]


def _level(n: int, rng: np.random.Generator) -> np.ndarray:
    return fills.levelled(rng.uniform(*fills.LEVEL), n, rng)


def _fall(n: int, rng: np.random.Generator) -> np.ndarray:
    return fills.fall(rng.uniform(*fills.LEVEL), 40.0, n, rng)


def _tail(n: int, rng: np.random.Generator) -> np.ndarray:
    return fills.fall(fills.FALL_END[1], fills.FALL_END[0], n, rng)


def _low(n: int, rng: np.random.Generator) -> np.ndarray:
    start = rng.uniform(*LOW_PILEUP)
    return fills.fall(start, 0.9 * start, n, rng)


KINDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "ramp": _ramp,
    "level": _level,
    "fall": _fall,
    "tail": _tail,
    "low": _low,
}
"""Pileup of a stretch of each kind: from the start of a fill; levelled; from 62 to 40; from 54 to 32; 1 to 8."""
