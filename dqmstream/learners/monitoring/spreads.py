"""How much more counts scatter in the known runs than the law of the response says.

Where the law is off, pulls of a known run are larger than 1, and the evidence for a new run grows without one. Two factors on
the variance of a pull correct it:

* one for each ring, from held-out lumisections of all runs, followed over time (an empirical null: Efron, J. Am. Stat. Assoc.
  99 (2004) 96), and
* one for each channel that stands out in a run, such as one that flickers or is in a box that trips, from the train part.

Within the law both are 1. A new run stays visible: its own channels are not among those that scatter in the known run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE, ring_medians

STEP = 10
"""Lumisections of a window within which the scatter of a channel is measured."""

LEAST_WINDOWS = 5
"""Windows without which no channel stands out."""

ODD = 3.0
"""Mean square of a channel's pulls in a run from which the channel stands out; 1 if it follows the law."""

LARGEST = 1e4
"""Largest factor of a channel."""

FADING = 0.9
"""Weight of a block relative to the next one, in the factors of the rings."""

PRIOR = 1.0
"""Prior blocks that follow the law."""

_ARRAYS = ("rings", "blocks", "run", "channel", "factor")


class Spreads:
    """Factors on the variances of pulls.

    rings: sum of the factors of the rings over blocks, with their weights, (rings,). blocks: sum of the weights. run, channel,
    factor: experience, position and factor of each channel that stands out in a run, (k,).
    """

    def __init__(self, rings: int) -> None:
        self.rings, self.blocks = np.zeros(rings), 0.0
        self.run, self.channel = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        self.factor = np.zeros(0, dtype=np.float32)

    def add_run(self, experience: int, short: np.ndarray, long: np.ndarray) -> None:
        """Add the channels that stand out in a run.

        short, long: pulls of the windows of 10 and of up to 30 lumisections of its train part, (windows, live).
        """
        if len(short) < LEAST_WINDOWS:
            return
        of_short = (short**2).mean(axis=0)
        odd = np.flatnonzero(of_short > ODD)
        factor = np.clip(np.maximum(of_short[odd], (long[:, odd] ** 2).mean(axis=0)), ODD, LARGEST)
        self.run = np.concatenate([self.run, np.full(len(odd), experience, dtype=np.int32)])
        self.channel = np.concatenate([self.channel, odd.astype(np.int32)])
        self.factor = np.concatenate([self.factor, factor.astype(np.float32)])

    def add_block(self, pull: np.ndarray, ring: np.ndarray) -> None:
        """Add the pulls of a held-out block, (live,). ring: of each channel, (live,)."""
        self.rings = FADING * self.rings + ring_medians(pull**2, ring) / MEDIAN_OF_SQUARE
        self.blocks = FADING * self.blocks + 1

    @property
    def of_rings(self) -> np.ndarray:
        """Factor of each ring, 1 or more, (rings,)."""
        return np.maximum((self.rings + PRIOR) / (self.blocks + PRIOR), 1.0)

    def of_rows(self, row: np.ndarray, ring: np.ndarray) -> np.ndarray:
        """Factor of each channel in each row of known runs, float32, (rows, live).

        row: of each class, (classes,). ring: of each channel, (live,).
        """
        found = np.ones((int(row.max()) + 1, len(ring)), dtype=np.float32)
        np.maximum.at(found, (row[self.run], self.channel), self.factor)
        return np.asarray(found * self.of_rings[ring].astype(np.float32))

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: np.array(getattr(self, name)) for name in _ARRAYS}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave; an empty one changes nothing. Raises StateError if it is damaged."""
        if not state:
            return
        if missing := [name for name in _ARRAYS if name not in state]:
            raise StateError(f"the state of the spreads lacks {', '.join(missing)}; it is damaged or of another version")
        self.rings, self.blocks = np.array(state["rings"]), float(state["blocks"])
        self.run, self.channel, self.factor = (np.array(state[name]) for name in ("run", "channel", "factor"))
