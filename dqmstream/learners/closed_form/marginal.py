"""Directions in which a lumisection may move freely, integrated out of its Gaussian log-density in closed form.

A lumisection's residuals r to a run are standard normal, plus unknown amounts along a few directions (vectors of derivatives,
one entry a channel): its events, its pileup, and the common mode of each readout box.
"""

from __future__ import annotations

import numpy as np


def inner_products(directions: tuple[np.ndarray, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Inner products over channels of two directions, (n, live) each, by their numbers (0, 0), (0, 1), (1, 1): (n, 1) each."""
    return {(i, j): np.einsum("nc,nc->n", directions[i], directions[j])[:, None] for i, j in ((0, 0), (0, 1), (1, 1))}


def integrated_out(projection: list[np.ndarray], product: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Change of the log-density by integrating over events and pileup, with flat priors.

        p' A⁻¹ p / 2 - log det A / 2

    projection: p, inner products of the residuals with both directions. product: A, those of the directions with each other
    (`inner_products`). All (n, runs) or broadcastable. 0 where A is singular (no counts).
    """
    a, b, c = product[0, 0], product[0, 1], product[1, 1]
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    inside = c * projection[0] ** 2 - 2 * b * projection[0] * projection[1] + a * projection[1] ** 2
    safe = np.where(lit, determinant, 1.0)
    return np.where(lit, 0.5 * inside / safe - 0.5 * np.log(safe), 0.0)


def mode_log_likelihood(variance: float | np.ndarray, information: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Change of the log-likelihood by a common mode u ~ Normal(0, variance) of a readout box.

        (σ² (h'r)² / (1 + σ² h'h) - log(1 + σ² h'h)) / 2

    h: derivatives of the box's channels by log(rate), r: their residuals. information: h'h. projection: h'r.
    """
    stretched = 1 + variance * information
    return 0.5 * (variance * projection**2 / stretched - np.log(stretched))
