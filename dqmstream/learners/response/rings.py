"""Medians within rings: channels of the same depth and |ieta| see the same rate, so a ring's median is a robust mean."""

from __future__ import annotations

import numpy as np

MEDIAN_OF_SQUARE = 0.4549
"""Median of z² for a standard normal z. A median of squares divided by it estimates a variance."""


def ring_medians(values: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Median of each ring, one number a ring.

    values: (..., channels). ring: number 0, 1, ... of each channel's ring, (channels,). Returns (..., rings).
    """
    return np.stack([np.median(values[..., ring == number], axis=-1) for number in range(ring.max() + 1)], axis=-1)


def medians(values: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Median of each channel's ring, at the place of the channel: (..., channels), from arguments as in `ring_medians`."""
    return ring_medians(values, ring)[..., ring]
