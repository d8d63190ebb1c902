"""Random numbers: one generator for each purpose, keyed by the seed, so that draws for one purpose do not shift another's."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from dqmstream.lumisection import N_IETA, N_IPHI

CORRELATION = 0.9
"""Of events and of pileup, between consecutive lumisections."""

WALK_RUNS = 4096
"""Most runs of a walk that can be computed at any run; a power of 2."""


class Purpose(IntEnum):
    """First word of a spawn key. The values are part of every stream's bits: new ones are added at the end."""

    FINGERPRINT = 0
    NOISY_BOXES = 1
    RUN = 2
    NUMBER = 3
    WALK = 4
    FAULTS = 5
    FLICKER = 6
    ANOMALIES = 7
    LUMINOSITY = 8
    FILL = 9
    DEPTHS = 10
    LAW = 20
    PATTERN_FAMILIES = 21
    MOVEMENT = 22


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator for a purpose. key: tells apart the runs, or whatever the purpose draws for."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *key)))


def run_generators(seed: int, index: int) -> list[np.random.Generator]:
    """Four generators of a run: for its number, the changes before it, its conditions, its counts."""
    children = np.random.SeedSequence(seed, spawn_key=(Purpose.RUN, index)).spawn(4)
    return [np.random.default_rng(child) for child in children]


def ar1(length: int, rng: np.random.Generator) -> np.ndarray:
    """A stationary first-order autoregressive sequence of normal numbers with unit variance, (length,)."""
    values = rng.standard_normal(length)
    innovation = np.sqrt(1 - CORRELATION**2)
    for i in range(1, length):
        values[i] = CORRELATION * values[i - 1] + innovation * values[i]
    return values


def walk(seed: int, index: int, depth: int = 0) -> np.ndarray:
    """A random walk with unit steps in each channel, after `index` steps: (64, 72). Earlier steps are not computed.

    depth: 0 for HE depth 1 alone; 1 to 7 give walks of their own.

    Levy's construction of Brownian motion: given the walk at both ends of an interval, its middle is normal around their mean,
    with a quarter of the length as variance (Karatzas and Shreve, Brownian Motion and Stochastic Calculus, 1991, section 2.3).
    At most 13 draws, for any index up to 4096.
    """
    low, high = 0, WALK_RUNS
    at_low = np.zeros((N_IETA, N_IPHI))
    at_high = np.sqrt(WALK_RUNS) * _node(seed, WALK_RUNS, depth)
    while low < index < high:
        middle = (low + high) // 2
        at_middle = (at_low + at_high) / 2 + np.sqrt(high - low) / 2 * _node(seed, middle, depth)
        if index < middle:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return at_low if index == low else at_high


def _node(seed: int, index: int, depth: int) -> np.ndarray:
    return generator(seed, Purpose.WALK, index, *((depth,) if depth else ())).standard_normal((N_IETA, N_IPHI))
