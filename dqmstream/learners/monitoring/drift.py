"""How far the gains of a run drift from the known run most like it, estimated from the known runs themselves."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE, medians

_DRIFTING = 20
"""Latest known runs whose drift is measured."""

_BEFORE = 256
"""Latest known runs among which the one most like each is searched."""

_THINNED = 16
"""One channel of 16 is used for a first guess at the run most alike."""

_ROUNDING = 1 + 1e-5
"""Margin for float32 rounding, between comparing squares with products and comparing quotients."""


def drift_variance(gains: np.ndarray, errors: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Variance of a gain between a run and the run most like it, beyond their errors; one value a ring, (live,).

    gains, errors: of the known runs, oldest first, (runs, live). ring: number of each channel's ring, (live,). 0 where fewer
    than two runs are known.
    """
    if len(gains) < 2:
        return np.zeros(gains.shape[1])
    # float32 takes half the time of float64: up to 20 times 256 runs are compared at each run.
    gains, variances = gains[-_BEFORE:].astype(np.float32), (errors[-_BEFORE:] ** 2).astype(np.float32)
    found = []
    for row in range(max(0, len(gains) - _DRIFTING), len(gains)):
        least = most_alike(row, gains, variances)
        both = variances[least] + variances[row]
        excess = medians((gains[least] - gains[row]) ** 2 / both, ring) / MEDIAN_OF_SQUARE - 1
        found.append(np.maximum(excess, 0) * both)
    return np.asarray(np.mean(found, axis=0, dtype=np.float64))


def most_alike(row: int, gains: np.ndarray, variances: np.ndarray) -> int:
    """The other row with the smallest median over channels of (difference of gains)² / (sum of variances).

    gains, variances: (rows, live).
    """

    def median_of(others: np.ndarray) -> np.ndarray:
        return np.asarray(np.median((gains[others] - gains[row]) ** 2 / (variances[others] + variances[row]), axis=1))

    square, variance = (gains - gains[row]) ** 2, variances + variances[row]
    likely = np.median(square[:, ::_THINNED] / variance[:, ::_THINNED], axis=1)
    likely[row] = np.inf
    bound = median_of(np.array([likely.argmin()]))[0]
    # A median exceeds the bound if most values do; counting them is much faster than computing the median.
    variance *= bound * _ROUNDING
    below = np.count_nonzero(square <= variance, axis=1)
    below[row] = 0
    others = np.flatnonzero(2 * below >= gains.shape[1] - 1)
    return int(others[median_of(others).argmin()])
