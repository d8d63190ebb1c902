"""How the counts of each channel depend on pileup beyond the law of the response, from all known runs together.

The rates of channels come from the first run. If its conditions are known less well than the law assumes, as where rings move
by themselves, all runs deviate in the same way: with pileup, around the mean pileup of the lumisections that a run was learnt
from. The relative change of a count is β_c (t - t̄), t the logarithm of the rate, β_c a slope for each channel. Slopes are
shrunk towards 0 by the spread that they have in their ring beyond their errors, so they are 0 where the law holds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.response.observation import Observation

_ARRAYS = ("information", "projection", "centre")


class Slopes:
    """Sums for the slopes of the channels.

    information: Σ h² (t - t̄)², projection: Σ h (t - t̄) r, (live,); residuals r and derivatives h as in `monitoring.evidence`.
    centre: t̄ of each experience, (classes,).
    """

    def __init__(self, channels: int) -> None:
        self.information, self.projection, self.centre = np.zeros(channels), np.zeros(channels), np.zeros(0)

    def add_run(self, rate: np.ndarray, noise: np.ndarray, leverage: np.ndarray) -> None:
        """Add a run: t of its lumisections, (n,), and r and h under its own gains, (n, live)."""
        known = np.isfinite(rate)
        self.centre = np.append(self.centre, rate[known].mean() if known.any() else 0.0)
        if not known.any():
            return
        rate, noise, leverage = rate[known, None], noise[known], leverage[known]
        weight = leverage**2
        total = np.maximum(weight.sum(axis=0), 1e-300)
        apart = rate - (weight * rate).sum(axis=0) / total
        self.information += (weight * apart**2).sum(axis=0)
        self.projection += (leverage * apart * noise).sum(axis=0)

    def of_channels(self, ring: np.ndarray) -> np.ndarray:
        """Slope of each channel, (live,). ring: of each channel."""
        known = self.information > 0
        slope = np.divide(self.projection, self.information, out=np.zeros(len(ring)), where=known)
        variance = np.divide(1.0, self.information, out=np.full(len(ring), np.inf), where=known)
        shrunk = np.zeros(len(ring))
        for number in np.unique(ring):
            of_ring = known & (ring == number)
            if of_ring.any():
                excess = max(float(np.mean(slope[of_ring] ** 2 - variance[of_ring])), 0.0)
                shrunk[of_ring] = slope[of_ring] * excess / (excess + variance[of_ring])
        return shrunk

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {name: getattr(self, name).copy() for name in _ARRAYS}

    def restore(self, state: Mapping[str, np.ndarray], classes: int) -> None:
        """Return to a state that `state` gave; from an empty one, runs so far have no centre. Raises StateError if damaged."""
        if not state:
            self.centre = np.full(classes, np.nan)
            return
        if missing := [name for name in _ARRAYS if name not in state]:
            raise StateError(f"the state of the slopes lacks {', '.join(missing)}; it is damaged or of another version")
        self.information, self.projection, self.centre = (np.array(state[name]) for name in _ARRAYS)


def log_rate(observed: Observation) -> np.ndarray:
    """t of lumisections: logarithm of the median rate of their channels, nan without any, (n,)."""
    middle = np.median(observed.rate, axis=1)
    return np.asarray(np.log(middle, out=np.full(len(middle), np.nan), where=middle > 0))
