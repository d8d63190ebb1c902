"""The detector: the response of each channel, its ageing, noisy readout boxes, and counts drawn from the response."""

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
"""Spread of the logarithm of the rate over the channels of a ring (chosen within the measured 6-10 %)."""

LOSS_AT_19, LOSS_AT_29 = 0.0005, 0.006
"""Loss of response per fb^-1 at |ieta| 19 and 29, exponential between (chosen): 3 % and 30 % after 60 fb^-1."""

OFF_THEIR_RING = (
    (-29, 55, 0.39),
    (20, 61, 0.70), (21, 61, 0.65), (23, 61, 0.70), (25, 61, 0.72), (27, 61, 0.76),
    (24, 57, 0.65), (26, 57, 0.70), (28, 57, 0.75), (29, 57, 0.80),
    (19, 58, 1.60), (20, 58, 1.30),
)  # fmt: skip
"""ieta, iphi and gain of the channels that are far from their ring's median in both published runs (measured)."""

READOUT_BOXES = tuple((side, n) for side in (-1, 1) for n in range(1, 19))
LIVE = he_depth1_mask()


def probability(rate: np.ndarray, pileup: np.ndarray | float) -> np.ndarray:
    """Probability that a channel fires in an event, by the measured response. rate, pileup: broadcast against each other."""
    return -np.expm1(-K * np.log1p(rate * pileup / K))


def nominal_rate() -> np.ndarray:
    """Median rate of each channel's ring, (64, 72); zero where depth 1 of HE has no channel."""
    rate = np.zeros((N_IETA, N_IPHI))
    for ring, value in RING_RATES.items():
        rate[[ieta_row(-ring), ieta_row(ring)]] = value
    return np.where(LIVE, rate, 0.0)


def fingerprint(seed: int, *, off_their_ring: bool = False) -> np.ndarray:
    """Lasting differences between channels, the same in all runs of a seed: lognormal, median 1 in each ring, (64, 72).

    off_their_ring: with the measured gains of `OFF_THEIR_RING`.
    """
    log_factor = FINGERPRINT_SIGMA * generator(seed, Purpose.FINGERPRINT).standard_normal((N_IETA, N_IPHI))
    for ring in RING_RATES:
        cells = LIVE & (np.abs(IETA) == ring)[:, None]
        log_factor[cells] -= np.median(log_factor[cells])
    factor = np.exp(log_factor)
    for ieta, iphi, gain in OFF_THEIR_RING if off_their_ring else ():
        factor[ieta_row(ieta), iphi - 1] = gain
    return factor


def ageing(integrated_luminosity_fb: float) -> np.ndarray:
    """Factor on each channel's rate after that luminosity: exp(-loss * luminosity), (64, 72). Losses grow with |ieta|."""
    loss = LOSS_AT_19 * (LOSS_AT_29 / LOSS_AT_19) ** ((np.abs(IETA) - 19) / 10)
    return np.broadcast_to(np.exp(-loss * integrated_luminosity_fb)[:, None], (N_IETA, N_IPHI))


def box_sets(size: int) -> list[tuple[tuple[int, int], ...]]:
    """All sets of so many readout boxes, each box as (side, n)."""
    return list(combinations(READOUT_BOXES, size))


def noisy_boxes(size: int, seed: int, index: int) -> tuple[tuple[int, int], ...]:
    """Noisy boxes of a run. All sets are shuffled once for the whole stream, so no two runs have the same."""
    if not size:
        return ()
    sets = box_sets(size)
    return sets[generator(seed, Purpose.NOISY_BOXES).permutation(len(sets))[index]]


def common_mode(
    rate: np.ndarray, boxes: tuple[tuple[int, int], ...], sigma: float, lumisections: int, rng: np.random.Generator
) -> np.ndarray:
    """The rate in each lumisection, (n, 64, 72): each box is multiplied as a whole by a normal factor with mean 1."""
    moving = np.broadcast_to(rate, (lumisections, *rate.shape)).copy()
    for side, n in boxes:
        moving[:, rbx_mask(side, n)] *= 1 + sigma * rng.standard_normal(lumisections)[:, None]
    return moving


def draw_counts(rate: np.ndarray, events: np.ndarray, pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw binomial counts: float64, (n, 64, 72). rate: (64, 72) or (n, 64, 72). events, pileup: (n,)."""
    return fire(probability(rate[..., LIVE], pileup[:, None]), events, rng)


def fire(p: np.ndarray, events: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw binomial counts: float64, (n, 64, 72). p: probabilities of the live channels, (n, 932). events: (n,)."""
    counts = np.zeros((len(events), N_IETA, N_IPHI))
    counts[:, LIVE] = rng.binomial(events.astype(np.int64)[:, None], p)
    return counts
