"""Small synthetic streams of runs: binomial counts of HE depth 1, where only the responses of channels differ between runs.

A channel fires in an event with probability p = 1 - (1 + R λ / k)^-k, k = 4.75, with R the pileup and λ the response of the
channel. The number of events N and R follow the same law in every run, so luminosity alone never identifies a run.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import assign
from dqmstream.learners.strategy import Past
from dqmstream.lumisection import IETA, he_depth1_mask

K = 4.75
"""k."""

RING_LAMBDA = dict(zip(range(19, 30), (0.187, 0.217, 0.435, 0.565, 0.747, 1.00, 1.41, 2.14, 2.14, 3.68, 2.16), strict=True))
"""λ at R = 1, for each ring |ieta|."""

FIRST_RUN = 370001


def _ar1(rng: np.random.Generator, n: int, correlation: float = 0.9) -> np.ndarray:
    """Stationary AR(1) process of unit variance, (n,)."""
    z = np.empty(n)
    z[0] = rng.standard_normal()
    kick = np.sqrt(1 - correlation**2) * rng.standard_normal(n)
    for i in range(1, n):
        z[i] = correlation * z[i - 1] + kick[i]
    return z


def draw_run(gain: np.ndarray, rng: np.random.Generator, n: int, run: int, scale: float = 1.0) -> RunData:
    """A run of n lumisections. gain: response of the 932 channels, relative to their ring. scale: factor on the events."""
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
    """A stream of runs of n lumisections. drift: relative change of a channel's response from run to run (standard deviation).

    box: response of one random readout box in each run.
    """
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
    """The `past` argument of `Strategy.learn`, for a stream in memory."""
    return lambda experience: stream[experience]
