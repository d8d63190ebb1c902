"""z-scores of residuals: deviations of a channel from its expected count under the conditions of the lumisection."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.faults.cost import Cost
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.fault_filter import Suspicion
from dqmstream.learners.response.reference import Reference

NEWEST = 0.7
"""Weight of the newest run in the moving mean and variance."""


class Standardised:
    """Mean and variance of each channel's value in good lumisections, of the first run or followed from run to run."""

    def __init__(self, follows: bool) -> None:
        self._follows = follows
        self._mean: np.ndarray | None = None
        self._square = np.zeros(0)

    @property
    def kept(self) -> tuple[np.ndarray, ...]:
        """Mean and variance."""
        return () if self._mean is None else (self._mean, self._square)

    def learn(self, values: np.ndarray) -> None:
        """values: of the next run, (n, live)."""
        mean, square = values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)
        if self._mean is None:
            self._mean, self._square = mean, square
        elif self._follows:
            self._mean = NEWEST * mean + (1 - NEWEST) * self._mean
            self._square = NEWEST * square + (1 - NEWEST) * self._square

    def suspicion(self, values: np.ndarray) -> Suspicion:
        """|value - mean| / standard deviation of each channel, and the largest of these for each lumisection.

        The standard deviation is at least 1, that of counting: a channel that counts in every event of the first run varies
        less there than later.
        """
        if self._mean is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        channels = np.abs(values - self._mean) / np.sqrt(np.maximum(self._square, 1.0))
        return Suspicion(channels.max(axis=1), channels)


class ZScore:
    """Residuals to the reference of the first run. follows: whether their mean and variance follow the later runs."""

    def __init__(self, follows: bool) -> None:
        self._reference: Reference | None = None
        self._standardised = Standardised(follows)

    @property
    def live(self) -> np.ndarray:
        return self._known.live

    @property
    def _known(self) -> Reference:
        if self._reference is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._reference

    def learn(self, good: Maps) -> None:
        self._reference = self._reference or Reference.fit(good)
        self._standardised.learn(self._reference.residuals(good.counts))

    def look(self, maps: Maps) -> Suspicion:
        return self._standardised.suspicion(self._known.residuals(maps.counts))

    def cost(self) -> Cost:
        return Cost.of_arrays([*self._known.state().values(), *self._standardised.kept], self._known.response_flops(1))
