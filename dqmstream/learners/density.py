"""The density of lumisections in each of many runs, given the gains of a run and the spreads of its boxes' common modes.

The law is that of `learners.statistical`. Almost all of its squares come of products of matrices, one for all runs at once: a
channel's noise in run k is r - h d_k wherever it cannot reach the cut at ±10, whatever run is asked. Channels that can, and
boxes with a common mode, are gone through run by run. Of 60 runs of `small` this takes a third of the time that all of it takes
run by run, of `moderate` a quarter.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.modes import Look, Modes
from dqmstream.learners.reference import CLIP

DEAD = -0.5
"""A gain below this is no smaller rate: the channel counts nothing, whatever the pileup."""


def leverage_of(look: Look, gain: np.ndarray) -> np.ndarray:
    """By how many deviations the counts move where gains (live,) or (n, live) are 1: (n, live)."""
    return np.where(gain <= DEAD, look.count_leverage, look.rate_leverage)


def without(look: Look, gain: np.ndarray) -> np.ndarray:
    """What is left of the residuals when a run's gains are taken out, cut at ±10: (n, live)."""
    left = look.residual - leverage_of(look, gain) * gain
    return np.clip(left, -CLIP, CLIP, out=left)


def mode_log_likelihood(variance: float | np.ndarray, information: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """By how much a mode of that variance raises the log-likelihood: h'h and h'r of its leverages h and the noise r."""
    stretched = 1 + variance * information
    return 0.5 * (variance * projection**2 / stretched - np.log(stretched))


def log_densities(look: Look, modes: Modes, gains: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Log-densities of lumisections in each run, but for what all runs have in common: (n, runs).

    gains: (runs, live). variances: of the common modes, (runs, B). With v = 1 / (1/σ² + h'h) of each box, h its leverages, the
    inverse of its channels' covariance is 1 - h v h' (Woodbury); E and R are then integrated over, each with a flat prior.
    """
    directions = (look.count_leverage, look.count_leverage * modes.sensitivity)
    square, onto = _squares(look, gains, directions)
    score = -0.5 * square
    product = {(i, j): np.einsum("nc,nc->n", directions[i], directions[j]) for i, j in ((0, 0), (0, 1), (1, 1))}
    quiet = ~variances.any(axis=1)
    score[:, quiet] += _free([along[:, quiet] for along in onto], {ij: inner[:, None] for ij, inner in product.items()})
    for run in np.flatnonzero(~quiet):
        variance, projection, with_modes = variances[run], [along[:, run] for along in onto], dict(product)
        for box in np.flatnonzero(variance):
            cells = modes.cells[box]
            mode = directions[1][:, cells]
            information = np.einsum("nc,nc->n", mode, mode)
            along_mode = np.einsum("nc,nc->n", mode, without(look.of(cells), gains[run, cells]))
            score[:, run] += mode_log_likelihood(variance[box], information, along_mode)
            weight = variance[box] / (1 + variance[box] * information)
            along = [np.einsum("nc,nc->n", direction[:, cells], mode) for direction in directions]
            for i in range(2):
                projection[i] = projection[i] - weight * along[i] * along_mode
            for i, j in product:
                with_modes[i, j] = with_modes[i, j] - weight * along[i] * along[j]
        score[:, run] += _free(projection, with_modes)
    return score


def _squares(
    look: Look, gains: np.ndarray, directions: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The sum of squares of the noise in each run, (n, runs), and its products with both directions, (n, runs) each."""
    farthest = np.abs(look.residual).max(axis=0) + np.abs(look.rate_leverage).max(axis=0) * np.abs(gains).max(axis=0)
    apart = (farthest > CLIP) | (gains <= DEAD).any(axis=0)
    plain, single = np.flatnonzero(~apart), np.flatnonzero(apart)
    residual, leverage, gain = look.residual[:, plain], look.rate_leverage[:, plain], gains[:, plain]
    square = (residual**2).sum(axis=1)[:, None] - 2 * (residual * leverage) @ gain.T + leverage**2 @ (gain**2).T
    onto = tuple(
        (along[:, plain] * residual).sum(axis=1)[:, None] - (along[:, plain] * leverage) @ gain.T for along in directions
    )
    if single.size:
        few, along_few = look.of(single), [np.ascontiguousarray(along[:, single]) for along in directions]
        for run in range(len(gains)):
            noise = without(few, gains[run, single])
            square[:, run] += np.einsum("nc,nc->n", noise, noise)
            for along, of_few in zip(onto, along_few, strict=True):
                along[:, run] += np.einsum("nc,nc->n", of_few, noise)
    return square, (onto[0], onto[1])


def _free(projection: list[np.ndarray], product: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The same for two directions of any size: p' A⁻¹ p / 2 - log det A / 2; nothing where A is singular (no light)."""
    a, b, c = product[0, 0], product[0, 1], product[1, 1]
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    inside = c * projection[0] ** 2 - 2 * b * projection[0] * projection[1] + a * projection[1] ** 2
    safe = np.where(lit, determinant, 1.0)
    return np.where(lit, 0.5 * inside / safe - 0.5 * np.log(safe), 0.0)
