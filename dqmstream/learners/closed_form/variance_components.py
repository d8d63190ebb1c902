"""Variance components: how much each part of the detector moves as a whole, and free modes above the noise.

Whitened residuals z of a run's lumisections have the covariance

    I + D diag(s) D' + U U'

D: a column for each readout box, ring, and ring against its mirror ring, times the derivative of the counts by log(rate).
s: variances of the log-rates, found by expectation maximisation. U: eigenvectors of what is left, above the largest eigenvalue
that noise alone gives (Marchenko and Pastur 1967), with their bias by noise removed (Baik and Silverstein 2006).
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.lumisection import IETA

ABOVE_NOISE = 1.15
"""Factor above the noise edge from which an eigenvector counts: at the edge itself, every second run of noise has one."""

MOST_MODES = 8
"""Most free modes of a run."""

FEWEST_CHANNELS = 4
"""Channels that a part of the detector must have."""

_STEPS = 40
"""Steps of expectation maximisation."""

_LEAST_START = 0.3
"""Smallest variance to start from, along the part's own direction, as a share of the noise."""

_CLEAR = 3.0
"""Standard errors above 0 from which a component counts; that of a variance from n lumisections is sqrt(2 / n)."""


def detector_parts(live: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Membership of the live channels in parts of the detector: float64 (live, parts).

    1 for a readout box or a ring, ±1 by the sign of ieta for a ring against its mirror ring. live: bool, (depth, 64, 72).
    ring: number of each channel's ring, (live,).
    """
    side = np.sign(IETA)[np.nonzero(live)[1]]
    columns = []
    for cells in ReadoutBoxes(live).cells:
        columns.append(np.zeros(len(ring)))
        columns[-1][cells] = 1.0
    for number in range(int(ring.max()) + 1):
        inside = (ring == number).astype(np.float64)
        columns.append(inside)
        if len(np.unique(side[ring == number])) == 2:
            columns.append(inside * side)
    return np.stack([column for column in columns if np.count_nonzero(column) >= FEWEST_CHANNELS] or columns[:1], axis=1)


def component_variances(z: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Variances s of the parts, 0 for negligible ones: (parts,). z: (n, live), with the directions `parts` (live, parts)."""
    gram, onto = parts.T @ parts, z @ parts
    moment = onto.T @ onto / len(z)
    size = np.diag(gram)
    kept = np.flatnonzero(size > 0)
    variance = np.zeros(len(gram))
    # Start from what each part alone would explain.
    alone = (np.diag(moment)[kept] / size[kept] - 1) / size[kept]
    variance[kept] = np.maximum(alone, _LEAST_START / size[kept])
    for step in range(_STEPS):
        inside = np.ix_(kept, kept)
        posterior = np.linalg.inv(gram[inside] + np.diag(1 / variance[kept]))
        mean = posterior @ moment[inside] @ posterior
        variance[kept] = np.maximum(np.diag(mean) + np.diag(posterior), 1e-12)
        if step >= _STEPS // 4:
            small = variance[kept] * size[kept] < _CLEAR * np.sqrt(2 / len(z))
            variance[kept[small]] = 0.0
            kept = kept[~small]
            if not kept.size:
                break
    return variance


def free_modes(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Free modes U beside the known ones, strongest first: float64 (live, modes).

    z: (n, live), means removed. known: modes times their standard deviations, (live, m): without U the covariance is
    I + known known'.
    """
    n, channels = z.shape
    basis, stretch = _stretched(known)
    white = z - (z @ basis * (1 - 1 / stretch)) @ basis.T
    value, vector = np.linalg.eigh(white @ white.T / max(n - 1, 1))
    ratio = channels / n
    strong = np.flatnonzero(value > ABOVE_NOISE * (1 + np.sqrt(ratio)) ** 2)[::-1][:MOST_MODES]
    if not strong.size:
        return np.zeros((channels, 0))
    own = value[strong]
    shifted = own + 1 - ratio
    spiked = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * own, 0.0))) / 2
    modes = white.T @ vector[:, strong] / np.sqrt(own * max(n - 1, 1)) * np.sqrt(np.maximum(spiked - 1, 0.0))
    return np.asarray(modes + (basis * (stretch - 1)) @ (basis.T @ modes))


def _stretched(modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Basis Q, (live, m), and factors w, (m,), such that I + modes modes' is the square of I + Q (w - 1) Q'."""
    if not modes.shape[1]:
        return modes, np.ones(0)
    basis, rest = np.linalg.qr(modes)
    value, vector = np.linalg.eigh(rest @ rest.T)
    return basis @ vector, np.sqrt(1 + np.maximum(value, 0.0))
