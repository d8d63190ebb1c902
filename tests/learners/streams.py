"""Small synthetic streams for the tests: binomial counts of HE depth 1 whose luminosity moves inside every run alike.

The model is p = 1 - (1 + R lambda / k)^-k with k = 4.75: N events, R like pileup, lambda the channel's response. N and R
have the same law in every run, so that luminosity alone never names a run; what differs is the channels' drift.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import assign
from dqmstream.learners.strategy import Past
from dqmstream.lumisection import IETA, he_depth1_mask

K = 4.75
RING_LAMBDA = dict(zip(range(19, 30), (0.187, 0.217, 0.435, 0.565, 0.747, 1.00, 1.41, 2.14, 2.14, 3.68, 2.16), strict=True))
FIRST_RUN = 370001


def _ar1(rng: np.random.Generator, n: int, correlation: float = 0.9) -> np.ndarray:
    """Stationary AR(1) of unit variance, shape (n,)."""
    z = np.empty(n)
    z[0] = rng.standard_normal()
    kick = np.sqrt(1 - correlation**2) * rng.standard_normal(n)
    for i in range(1, n):
        z[i] = correlation * z[i - 1] + kick[i]
    return z


def draw_run(gain: np.ndarray, rng: np.random.Generator, n: int, run: int, scale: float = 1.0) -> RunData:
    """One run of n lumisections. gain: response of each of the 932 channels; scale: multiplies the number of events."""
    live = he_depth1_mask()
    ring = np.array([RING_LAMBDA[abs(int(i))] for i in IETA[np.nonzero(live)[0]]])
    events = np.clip(1250 * np.exp(0.2 * _ar1(rng, n)), 600, 2600) * scale
    pileup = np.linspace(7, 3, n) * np.exp(0.06 * _ar1(rng, n))
    p = 1 - (1 + pileup[:, None] * ring * gain / K) ** -K
    counts = np.zeros((n, 1, 64, 72), dtype=np.float32)
    counts[:, 0, live] = rng.binomial(events.astype(np.int64)[:, None], p)
    lumisection = np.arange(1, n + 1)
    return RunData(run, Maps(counts, np.floor(events), pileup, lumisection), assign(lumisection))


def make_stream(runs: int, drift: float, seed: int = 0, n: int = 200, box: float = 1.0) -> list[RunData]:
    """Runs whose channels walk by `drift` a run; with `box` below 1 some readout box is at that response in each run."""
    rng = np.random.default_rng([seed, runs])
    live = he_depth1_mask()
    side, column = np.sign(IETA)[np.nonzero(live)[0]], np.nonzero(live)[1]
    gain = np.exp(0.08 * rng.standard_normal(int(live.sum())))
    stream = []
    for i in range(runs):
        ailing = (side == (-1) ** i) & (column // 4 == rng.integers(18))
        stream.append(draw_run(gain * np.where(ailing, box, 1.0), rng, n, FIRST_RUN + i))
        gain = gain * np.exp(drift * rng.standard_normal(gain.size))
    return stream


def reader(stream: list[RunData]) -> Past:
    """`past` of a stream that is held in memory."""
    return lambda experience: stream[experience]


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
