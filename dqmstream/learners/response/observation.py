"""Lumisections compared with the reference: residuals, and how counts change with events, pileup and gains.

A different number of events changes all counts by the same factor. Different pileup and gains change rates; the counts follow
by the law of `response.law`, N A P(R λ (1 + d)) for a gain d, whichever response the reference has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from dqmstream.learners.response.law import SHAPE, rate_of, silence
from dqmstream.learners.response.reference import Reference

_LEAST_VARIANCE = 0.01
"""Smallest ratio of the variance of a count to its variance without gains. For a dead channel, the law gives 0."""

_Index = np.ndarray | slice | tuple[slice | None, ...]


class ConditionFactors(NamedTuple):
    """Events and pileup of lumisections as factors on those that an `Observation` assumes: (n, 1) each."""

    events: np.ndarray
    pileup: np.ndarray

    def rows(self, index: _Index) -> ConditionFactors:
        """Some of the lumisections."""
        return ConditionFactors(self.events[index], self.pileup[index])


@dataclass(frozen=True, eq=False)
class Observation:
    """Lumisections compared with the reference; all arrays are (n, live) and of one type.

    residual: (count - expected) / deviation. full: N A / deviation, the count of a channel that fires in every event. rate:
    R λ. quiet: 1 - P, the probability of silence. deviation: standard deviation of the count.
    """

    residual: np.ndarray
    full: np.ndarray
    rate: np.ndarray
    quiet: np.ndarray
    deviation: np.ndarray

    @property
    def leverage(self) -> np.ndarray:
        """Derivative of the expected count by log(events), in deviations."""
        return self.full * (1 - self.quiet)

    @property
    def per_rate(self) -> np.ndarray:
        """Derivative of the expected count by the rate, in deviations."""
        return self.full * self.quiet / (1 + self.rate / SHAPE)

    @property
    def rate_leverage(self) -> np.ndarray:
        """Derivative of the expected count by log(rate), in deviations."""
        return self.rate * self.per_rate

    def of(self, channels: np.ndarray | slice) -> Observation:
        """Some of the channels."""
        return Observation(*(getattr(self, field.name)[:, channels] for field in fields(self)))

    def single(self) -> Observation:
        """All arrays in float32."""
        return Observation(*(getattr(self, field.name).astype(np.float32) for field in fields(self)))

    def rows(self, index: _Index) -> Observation:
        """Some of the lumisections."""
        return Observation(*(getattr(self, field.name)[index] for field in fields(self)))

    def under(self, gain: np.ndarray | float, conditions: ConditionFactors | None = None) -> Observation:
        """The same counts compared with another expectation: rates higher by gains, and other conditions if given.

        gain: -1 or more; anything that broadcasts with (n, live). Deviations become those of the new expectation.
        """
        events, pileup = conditions or (1.0, 1.0)
        rate = self.rate * (pileup * (1 + gain))
        quiet = silence(rate)
        # The variance of a count is N p (1 - p).
        wider = np.sqrt(np.maximum(quiet * (1 - quiet) / (self.quiet * (1 - self.quiet)), _LEAST_VARIANCE) * events)
        residual = (self.residual + self.full * (1 - self.quiet - events * (1 - quiet))) / wider
        return Observation(residual, self.full * events / wider, rate, quiet, self.deviation * wider)


def observe(reference: Reference, counts: np.ndarray) -> Observation:
    """Compare counts of the live channels, float64 (n, live), with the reference under the lumisections' own conditions."""
    expected, deviation, fired = reference.response(counts)
    return Observation((counts - expected) / deviation, expected / (deviation * fired), rate_of(fired), 1 - fired, deviation)
