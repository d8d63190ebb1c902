"""Runs under the conditions of data taking, which the named streams of the simulator do not have.

From OMS and trigger files of 2022 to 2025: the number of events of a lumisection is a constant of the era times the live
fraction, with Poisson noise; pileup is levelled near 62 for hours, then falls, ramps up at the start of a fill, or is 1 to 8 in
special fills; some lumisections are truncated or empty; runs last 20 to 1000 lumisections. Some channels have a gain far from
that of their ring. Pileup 60 corresponds to R = 12 of the response, as in run 357479.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.simulator import LIVE, draw_counts, fingerprint, nominal_rate
from dqmstream.lumisection import ieta_row

R_A_PILEUP = 0.2
LEVEL, JITTER = 62.0, 0.3
RAMP = 60
"""Lumisections until the pileup of a fill is reached."""

EVENTS = (1100.0, 3800.0)
LENGTHS = (20, 50, 100, 300, 1000)
EMPTY = 20

FAR = ((-29, 55, 0.39), (20, 61, 0.7), (21, 61, 0.65), (23, 61, 0.7), (25, 61, 0.72), (27, 61, 0.76), (24, 57, 0.65),
       (26, 57, 0.7), (28, 57, 0.75), (29, 57, 0.8), (19, 58, 1.6), (20, 58, 1.3))  # fmt: skip
"""ieta, iphi and gain of the channels that are far from their ring in the two published runs."""


@dataclass(frozen=True, eq=False)
class RunConditions:
    """Number of events and pileup of each lumisection of a run, (n,) each."""

    events: np.ndarray
    pileup: np.ndarray


def rates(seed: int) -> np.ndarray:
    """Rate of each channel, (64, 72): that of its ring, the fingerprint, and the gains of FAR."""
    rate = nominal_rate() * fingerprint(seed)
    for ieta, iphi, gain in FAR:
        rate[ieta_row(ieta), iphi - 1] *= gain
    return rate


def conditions(kind: str, lumisections: int, rng: np.random.Generator) -> RunConditions:
    """Draw the conditions of a run. kind: a key of PILEUP."""
    live = np.clip(1 - rng.exponential(0.03, lumisections), 0.6, 1.0)
    truncated = rng.random(lumisections) < rng.uniform(0.002, 0.025)
    live[truncated] = rng.uniform(0.1, 0.6, int(truncated.sum()))
    empty = rng.permutation(lumisections)[: rng.integers(min(EMPTY, lumisections // 4) + 1)]
    live[empty] = 0.0
    constant = np.exp(rng.uniform(*np.log(EVENTS)))
    return RunConditions(rng.poisson(constant * live).astype(np.float64), np.maximum(PILEUP[kind](lumisections, rng), 0.5))


def draw(rate: np.ndarray, given: RunConditions, rng: np.random.Generator, *, r_a_pileup: float = R_A_PILEUP) -> np.ndarray:
    """Draw counts: float32, (n, 64, 72). rate: (64, 72)."""
    return draw_counts(np.where(LIVE, rate, 0.0), given.events, given.pileup * r_a_pileup, rng).astype(np.float32)


def _level(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(LEVEL - 1, LEVEL + 1) + JITTER * rng.standard_normal(n)


def _fall(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.linspace(LEVEL, 40, n) + JITTER * rng.standard_normal(n)


def _tail(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.linspace(54, 32, n) + JITTER * rng.standard_normal(n)


def _ramp(n: int, rng: np.random.Generator) -> np.ndarray:
    climb = np.linspace(1, LEVEL, min(RAMP, n))
    dips = rng.permutation(len(climb))[: len(climb) // 5]
    climb[dips] *= rng.uniform(0.3, 0.7, len(dips))  # beams are separated for a scan
    return np.concatenate([climb, _level(n - len(climb), rng)])


def _low(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(1, 8) * np.linspace(1.05, 0.95, n)


PILEUP: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "level": _level, "fall": _fall, "tail": _tail, "ramp": _ramp, "low": _low,
}  # fmt: skip

PAIRS = (
    ("level", "level"), ("level", "fall"), ("fall", "fall"), ("level", "tail"), ("fall", "tail"), ("ramp", "level"),
    ("ramp", "ramp"), ("low", "low"), ("low", "level"),
)  # fmt: skip
