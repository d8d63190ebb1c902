"""Pileup slopes: a part of the detector that responds to pileup in another way, in one run only.

    log rate of part p changes by a max(x - t, 0),    x = log pileup relative to the reference run

Slope a and threshold t are found by least squares, t among the run's own quantiles of x. Beyond the run's largest x the change
is held. A run whose conditions change slowly has other slow changes too (temperature, voltage): they are described in the same
way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SLOPES = np.dtype([(name, np.float32) for name in ("part", "threshold", "top", "slope", "mean")])
"""A slope of a run: number of the part, threshold t, the run's largest x, a, and the mean change over the run, which is part of
its gains."""

CLEAR = 6.0
"""Standard errors by which a slope must differ from 0: of 70 parts and 9 thresholds, a run of noise has one in a million."""

MOST_SLOPES = 8
"""Most slopes of a run."""

FEWEST_LUMISECTIONS = 40
"""Lumisections that a run needs."""

_QUANTILES = np.linspace(0.0, 0.8, 9)


def find_slopes(log_pileup: np.ndarray, z: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Slopes of a run, clearest first: `SLOPES`, (slopes,).

    log_pileup: x, (n,). z: whitened residuals, means removed, (n, live). parts: whitened directions by log(rate),
    (live, parts).
    """
    found = np.zeros(0, SLOPES)
    n, size = len(z), np.einsum("cp,cp->p", parts, parts)
    if n < FEWEST_LUMISECTIONS or not np.ptp(log_pileup):
        return found
    thresholds = np.unique(np.quantile(log_pileup, _QUANTILES))
    rise = np.maximum(log_pileup[:, None] - thresholds, 0.0)
    mean = rise.mean(axis=0)
    centred = rise - mean
    weight = (centred**2).sum(axis=0)
    change = np.divide(z @ parts, size, out=np.zeros((n, len(size))), where=size > 0)
    gram = np.divide(parts.T @ parts, size[:, None], out=np.zeros((len(size), len(size))), where=size[:, None] > 0)
    for _ in range(MOST_SLOPES):
        slope = centred.T @ change / weight[:, None]
        left = np.maximum((change**2).sum(axis=0) - slope**2 * weight[:, None], np.finfo(np.float64).tiny) / n
        clear = np.where(size > 0, np.abs(slope) / np.sqrt(left / weight[:, None]), 0.0)
        at, part = np.unravel_index(int(clear.argmax()), clear.shape)
        if clear[at, part] < CLEAR:
            break
        one = (part, thresholds[at], log_pileup.max(), slope[at, part], slope[at, part] * mean[at])
        found = np.concatenate([found, np.array([one], SLOPES)])
        # What the slope explains in the other parts, which share channels with it.
        change = change - np.outer(centred[:, at] * slope[at, part], gram[:, part])
    return found


def shifts(slopes: np.ndarray, log_pileup: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Part of each slope, and the change of its log-rate in each lumisection relative to the run's mean, (n,)."""
    for one in slopes:
        rise = np.maximum(np.minimum(log_pileup, one["top"]) - one["threshold"], 0.0)
        yield int(one["part"]), (one["slope"] * rise - one["mean"]).astype(np.float32)
