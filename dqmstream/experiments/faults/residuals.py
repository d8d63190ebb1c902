"""Residual z-scores: how many deviations a channel is off what it should count under the lumisection's conditions."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.fault_filter import Suspicion
from dqmstream.learners.response.reference import Reference

NEWEST = 0.7
"""Weight of the newest run in what is followed."""


class Standardised:
    """Mean and deviation of each channel's figure in good lumisections, of the first run or followed from run to run."""

    def __init__(self, follows: bool) -> None:
        self._follows = follows
        self._mean: np.ndarray | None = None
        self._square = np.zeros(0)

    def learn(self, values: np.ndarray) -> None:
        """values: of the next run, (n, live)."""
        mean, square = values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)
        if self._mean is None:
            self._mean, self._square = mean, square
        elif self._follows:
            self._mean = NEWEST * mean + (1 - NEWEST) * self._mean
            self._square = NEWEST * square + (1 - NEWEST) * self._square

    def suspicion(self, values: np.ndarray) -> Suspicion:
        """|value - mean| / deviation of channels, and the largest of a lumisection.

        No deviation is below that of counting, 1: a channel that is full in the first run scatters less there than it will.
        """
        if self._mean is None:
            raise InputError("no run is known yet: learn one before asking for faults")
        channels = np.abs(values - self._mean) / np.sqrt(np.maximum(self._square, 1.0))
        return Suspicion(channels.max(axis=1), channels)


class ZScore:
    """By the reference of the first run; means and deviations of residuals follow the runs, or stay those of the first."""

    def __init__(self, follows: bool) -> None:
        self._reference: Reference | None = None
        self._standardised = Standardised(follows)

    @property
    def live(self) -> np.ndarray:
        return self._known.live

    @property
    def _known(self) -> Reference:
        if self._reference is None:
            raise InputError("no run is known yet: learn one before asking for faults")
        return self._reference

    def learn(self, good: Maps) -> None:
        self._reference = self._reference or Reference.fit(good)
        self._standardised.learn(self._reference.residuals(good.counts))

    def look(self, maps: Maps) -> Suspicion:
        return self._standardised.suspicion(self._known.residuals(maps.counts))
