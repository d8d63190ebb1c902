"""How channels move together in a lumisection: with its events, with its pileup, and with the gain of a readout box.

A channel fires in an event with probability p = 1 - (1 + x/k)^-k, x its rate (the response that was measured on HE depth 1,
k = 4.75). Where the rate changes by a small share the count changes by that share times

    m = d log p / d log x = k (q - q^(1 + 1/k)) / (1 - q),    q = 1 - p,

.55 in the dimmest rings and .004 in the brightest, which are full. That is the shape of a readout box's common mode, and of
what pileup does; events move all counts by the same share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.learners.reference import Reference
from dqmstream.lumisection import IETA, IPHI, readout_box

SHAPE = 4.75
"""k of the response, measured."""

_SILENCE = (1e-3, 1 - 1e-6)
"""The least and the largest q: a channel that is fuller cannot be told from a full one."""


@dataclass(frozen=True, eq=False)
class Look:
    """Lumisections seen through the reference, all float64 (n, live).

    residual: (count - expected) / deviation. count_leverage: by how many deviations the count moves where the count of the
    channel changes by 100 %. rate_leverage: the same for a change that is one of its rate, as large in the reference run.
    """

    residual: np.ndarray
    count_leverage: np.ndarray
    rate_leverage: np.ndarray


class Modes:
    """The common modes of the live channels of a reference.

    sensitivity: m of each live channel in the reference run, the same in each ring, (live,). ring: a number for each pair of
    depth and |ieta|, (live,). boxes: names of the readout boxes that hold a live channel (`lumisection.readout_box`), (B,).
    cells: positions of each box's channels among the live ones.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        depth, row, column = np.nonzero(reference.live)
        self.ring = np.unique(100 * depth + np.abs(IETA)[row], return_inverse=True)[1]
        # A count of N events has mean N p and variance N p q, so that their quotient needs no N.
        quotient = reference.spread**2 / reference.profile
        self._silence = np.clip(medians(quotient, self.ring), *_SILENCE)
        self.sensitivity = _sensitivity(self._silence)
        box = readout_box(IETA[row], IPHI[column])
        self.boxes = np.unique(box)
        self.cells = [np.flatnonzero(box == name) for name in self.boxes]

    def look(self, counts: np.ndarray) -> Look:
        """Lumisections by the counts of the live channels, (n, live)."""
        expected, deviation = self._reference.response(counts)
        leverage = expected / deviation
        brightness = (deviation[:, :1] / self._reference.spread[0]) ** 2
        fired = (1 - self._silence) * expected / (brightness * self._reference.profile)
        now = _sensitivity(np.clip(1 - fired, *_SILENCE))
        return Look((counts - expected) / deviation, leverage, leverage * now / self.sensitivity)

    def by_box(self, values: np.ndarray) -> np.ndarray:
        """Sums over the channels of each box: (..., live) to (..., B)."""
        return np.stack([values[..., cells].sum(axis=-1) for cells in self.cells], axis=-1)


def _sensitivity(silence: np.ndarray) -> np.ndarray:
    """m for a probability q of not firing."""
    return SHAPE * (silence - silence ** (1 + 1 / SHAPE)) / (1 - silence)


def medians(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The median over the last axis within each group 0, 1, ..., at the places of its members."""
    out = np.empty(values.shape)
    for number in range(group.max() + 1):
        members = group == number
        out[..., members] = np.median(values[..., members], axis=-1, keepdims=True)
    return out
