"""The detector: each channel's response, which channels belong together, how the response ages, and counts from it."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from dqmstream.experiments.simulator.draws import Purpose, generator
from dqmstream.lumisection import IETA, N_IETA, N_IPHI, he_depth1_mask, ieta_row, rbx_mask

K = 4.75
"""Shape of the response (measured)."""

RING_RATES = dict(zip(range(19, 30), (0.187, 0.217, 0.435, 0.565, 0.747, 1.00, 1.41, 2.14, 2.14, 3.68, 2.16), strict=True))
"""|ieta| -> median rate of the ring's channels per unit of R (measured)."""

FINGERPRINT_SIGMA = 0.08
"""Spread of the channels in a ring, in the logarithm of the rate (chosen within the measured 6-10 %)."""

LOSS_AT_19, LOSS_AT_29 = 0.0005, 0.006
"""Loss of response per fb^-1 at |ieta| 19 and 29, exponential between (chosen): 3 % and 30 % after 60 fb^-1."""

READOUT_BOXES = tuple((side, n) for side in (-1, 1) for n in range(1, 19))
LIVE = he_depth1_mask()


def probability(rate: np.ndarray, pileup: np.ndarray | float) -> np.ndarray:
    """Probability that a channel of that rate fires in an event (the measured response); the arguments broadcast."""
    return -np.expm1(-K * np.log1p(rate * pileup / K))


def nominal_rate() -> np.ndarray:
    """Median rate of each channel's ring, (64, 72), zero where depth 1 of HE has no channel."""
    rate = np.zeros((N_IETA, N_IPHI))
    for ring, value in RING_RATES.items():
        rate[[ieta_row(-ring), ieta_row(ring)]] = value
    return np.where(LIVE, rate, 0.0)


def fingerprint(seed: int) -> np.ndarray:
    """Lasting differences between channels: lognormal, median 1 in each ring, (64, 72); one for all runs of a seed."""
    log_factor = FINGERPRINT_SIGMA * generator(seed, Purpose.FINGERPRINT).standard_normal((N_IETA, N_IPHI))
    for ring in RING_RATES:
        cells = LIVE & (np.abs(IETA) == ring)[:, None]
        log_factor[cells] -= np.median(log_factor[cells])
    return np.exp(log_factor)


def ageing(integrated_luminosity_fb: float) -> np.ndarray:
    """Factor on each channel's rate after that luminosity, (64, 72): exp(-loss * luminosity), more at high |ieta|."""
    loss = LOSS_AT_19 * (LOSS_AT_29 / LOSS_AT_19) ** ((np.abs(IETA) - 19) / 10)
    return np.broadcast_to(np.exp(-loss * integrated_luminosity_fb)[:, None], (N_IETA, N_IPHI))


def box_sets(size: int) -> list[tuple[tuple[int, int], ...]]:
    return list(combinations(READOUT_BOXES, size))


def noisy_boxes(size: int, seed: int, index: int) -> tuple[tuple[int, int], ...]:
    """Noisy boxes of a run: one shuffle of all sets serves the whole stream, so no set comes twice."""
    if not size:
        return ()
    sets = box_sets(size)
    return sets[generator(seed, Purpose.NOISY_BOXES).permutation(len(sets))[index]]


def common_mode(
    rate: np.ndarray, boxes: tuple[tuple[int, int], ...], sigma: float, lumisections: int, rng: np.random.Generator
) -> np.ndarray:
    """The rate in each lumisection, (n, 64, 72): each box moves as a whole, its factor has mean 1."""
    moving = np.broadcast_to(rate, (lumisections, *rate.shape)).copy()
    for side, n in boxes:
        moving[:, rbx_mask(side, n)] *= 1 + sigma * rng.standard_normal(lumisections)[:, None]
    return moving


def draw_counts(rate: np.ndarray, events: np.ndarray, pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Binomial counts, float64 (n, 64, 72), for rate (64, 72) or (n, 64, 72) and events, pileup (n,)."""
    return fire(probability(rate[..., LIVE], pileup[:, None]), events, rng)


def fire(p: np.ndarray, events: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Binomial counts, float64 (n, 64, 72), for the live channels' probabilities (n, 932) and events (n,)."""
    counts = np.zeros((len(events), N_IETA, N_IPHI))
    counts[:, LIVE] = rng.binomial(events.astype(np.int64)[:, None], p)
    return counts
