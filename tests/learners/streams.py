"""Streams for the tests of learners: those that the checks ship with, and runs with the conditions of real ones."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.checks.streams import FIRST_RUN, RING_LAMBDA, K, draw_run, make_stream, reader
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Part, assign
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import IETA, he_depth1_mask

__all__ = ["FIRST_RUN", "RING_LAMBDA", "K", "draw_run", "make_stream", "reader"]

RING_OF_CHANNEL = np.array([RING_LAMBDA[abs(int(i))] for i in IETA[np.nonzero(he_depth1_mask())[0]]])
"""λ of the ring of each of the 932 channels."""


def fingerprint(seed: int) -> np.ndarray:
    """Response of each of the 932 channels of a detector."""
    return np.exp(0.08 * np.random.default_rng([seed, 8]).standard_normal(932))


def conditions_of(path: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Pileup of n lumisections as real runs have it: level at 61.7 ± .3, falling from 62 to 40, a ramp from 1 to 62 in a
    fourth of the run and level then, or low (8 to 6)."""
    level = 61.7 + 0.3 * rng.standard_normal(n)
    ramp = np.where(np.arange(n) < n // 4, np.linspace(1, 4 * 61, n), level)
    paths = {"level": level, "falling": np.linspace(62, 40, n), "ramp": ramp, "low": np.linspace(8, 6, n)}
    return paths[path] * np.exp(0.003 * rng.standard_normal(n)) if path != "level" else level


def draw_real_run(
    gain: np.ndarray, pileup: np.ndarray, rng: np.random.Generator, run: int, *, r_per_pileup: float, empty: int = 0
) -> RunData:
    """A run with the conditions of real ones: N Poisson about 1100, .5 % truncated to .1-.6, some empty lumisections."""
    n = len(pileup)
    events = rng.poisson(1100, n).astype(np.float64)
    truncated = rng.random(n) < 0.005
    events[truncated] = np.round(events[truncated] * rng.uniform(0.1, 0.6, truncated.sum()))
    events[rng.choice(n, empty, replace=False)] = 0
    p = 1 - (1 + r_per_pileup * pileup[:, None] * RING_OF_CHANNEL * gain / K) ** -K
    counts = np.zeros((n, 1, 64, 72), dtype=np.float32)
    counts[:, 0, he_depth1_mask()] = rng.binomial(events.astype(np.int64)[:, None], p)
    lumisection = np.arange(1, n + 1)
    return RunData(run, Maps(counts, events, pileup, lumisection), assign(lumisection))


def accuracy(strategy: Strategy, stream: list[RunData]) -> float:
    """Mean accuracy over the runs' test parts after learning them all."""
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    hits = [np.mean(strategy.scores(run.part(Part.TEST)).argmax(axis=1) == i) for i, run in enumerate(stream)]
    return float(np.mean(hits))
