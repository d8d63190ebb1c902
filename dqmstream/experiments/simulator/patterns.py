"""Patterns that move without effect on the mean: standing and travelling waves along iphi, rings against their mirror, a bump.

Four families, taken in turn in a random order in each four runs. A run draws the parameters of its pattern.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dqmstream.experiments.simulator.detector import RING_RATES
from dqmstream.experiments.simulator.movements import ANGLES, RINGS, Movement, Swaying, Wandering

STANDING_SIGMA, TRAVELLING_AMPLITUDE, MIRROR_SIGMA, BUMP_AMPLITUDE = 0.06, 0.05, 0.05, 0.12
MOST_WAVES = 8
WAVE_RINGS, MIRROR_RINGS = 5, 4
BUMP_WIDTH, BUMP_RINGS = (0.25, 0.6), 1.5
"""Width of the bump along azimuth, in radians, and across rings (standard deviation)."""

WAVE_STEP, BUMP_STEP = 0.5, 0.4
"""How far the phase of a travelling wave and the place of a bump walk in a lumisection, in radians."""

Family = Callable[[np.random.Generator], Movement]


def standing_wave(rng: np.random.Generator) -> Swaying:
    """A wave along iphi on some rings of a side, whose nodes do not move."""
    channels, waves, where = _wave(rng)
    phase = float(rng.uniform(0, 2 * np.pi))
    shape = np.cos(waves * ANGLES[channels] - phase)
    return Swaying({"kind": "standing wave", **where, "phase": _short(phase)}, channels, shape, STANDING_SIGMA)


def travelling_wave(rng: np.random.Generator) -> Wandering:
    """A wave along iphi on some rings of a side, of constant amplitude, whose phase walks."""
    channels, waves, where = _wave(rng)
    ones = np.ones(len(channels))
    return Wandering({"kind": "travelling wave", **where}, channels, ones, TRAVELLING_AMPLITUDE, waves, 0.0, WAVE_STEP)


def mirror(rng: np.random.Generator) -> Swaying:
    """Some rings move against their mirror rings on the other side."""
    rings = sorted(rng.choice(list(RING_RATES), MIRROR_RINGS, replace=False).tolist())
    signs = rng.choice((-1, 1), MIRROR_RINGS).tolist()
    channels = np.flatnonzero(np.isin(np.abs(RINGS), rings))
    sign = np.array([dict(zip(rings, signs, strict=True))[abs(int(ring))] for ring in RINGS[channels]])
    return Swaying({"kind": "mirror", "rings": rings, "signs": signs}, channels, sign * np.sign(RINGS[channels]), MIRROR_SIGMA)


def bump(rng: np.random.Generator) -> Wandering:
    """A bump on some rings of a side, which wanders around the detector."""
    side, ring = int(rng.choice((-1, 1))), int(rng.integers(20, 29))
    width = float(rng.uniform(*BUMP_WIDTH))
    across = np.exp(-0.5 * ((np.abs(RINGS) - ring) / BUMP_RINGS) ** 2)
    channels = np.flatnonzero((np.sign(RINGS) == side) & (across > 0.1))
    what: dict[str, object] = {"kind": "bump", "side": side, "ring": ring, "width": _short(width)}
    return Wandering(what, channels, across[channels], BUMP_AMPLITUDE, 0, width, BUMP_STEP)


FAMILIES: tuple[Family, ...] = (standing_wave, travelling_wave, mirror, bump)


def _wave(rng: np.random.Generator) -> tuple[np.ndarray, int, dict[str, object]]:
    """Channels, wavenumber and truth of a wave."""
    side, first = int(rng.choice((-1, 1))), int(rng.integers(19, 30 - WAVE_RINGS + 1))
    waves = int(rng.integers(1, MOST_WAVES + 1))
    rings = list(range(first, first + WAVE_RINGS))
    channels = np.flatnonzero((np.sign(RINGS) == side) & np.isin(np.abs(RINGS), rings))
    return channels, waves, {"side": side, "rings": rings, "waves": waves}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
