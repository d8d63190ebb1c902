"""What a response is: expected counts of the live channels as a function of a lumisection's conditions.

The conditions of a lumisection are two numbers taken from its own map, both 1 on average in the reference run
(`response.reference`):

    a    total count of the rings |ieta| 19-23, which rises with pileup
    b    total count of the rings |ieta| 26-28, which are nearly full and follow the number of events

Two responses exist: `Saturating`, the physical law, and `Quadratic`, for counts that do not follow it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

ROUNDING = 1e-3
"""Smallest relative error of an expected count. A smaller scatter comes from rounding or from too few lumisections."""

NEAR = 0.05
"""Conditions up to 5 % outside the fitted range still count as inside."""

WINDOW_FACTOR = 30**0.5
"""Weight of an error that is the same in consecutive lumisections, such as that of a rate: in a sum over a window of 30
lumisections it grows by 30, where counting errors grow by sqrt(30)."""

LEAST_SILENCE, MOST_SILENCE = 1e-3, 1 - 1e-6
"""Range of the probability of silence 1 - P that the scatter of counts can resolve."""

MeasureConditions = Callable[[np.ndarray], np.ndarray]
"""Conditions a and b of lumisections: counts (n, live) -> (n, 2)."""


class Expected(NamedTuple):
    """Expectation for the live channels: counts, their standard deviation, and the probability to fire; all (n, live)."""

    counts: np.ndarray
    deviation: np.ndarray
    fired: np.ndarray

    @property
    def events(self) -> np.ndarray:
        """Number of events times efficiency, N A: (n, live)."""
        return self.counts / self.fired


class Response(ABC):
    """Expected counts under conditions a and b."""

    kind: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]]
    """Attributes that are saved."""
    more: ClassVar[tuple[str, ...]] = ()
    """Attributes that are saved too, but are None in states of older versions."""

    @abstractmethod
    def expected(self, conditions: np.ndarray) -> Expected:
        """Expectation under conditions (n, 2)."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        arrays = {name: getattr(self, name) for name in (*self.arrays, *self.more)}
        return {name: array for name, array in arrays.items() if array is not None}

    @abstractmethod
    def beyond(self, conditions: np.ndarray) -> np.ndarray:
        """Whether conditions (n, 2) lie outside the fitted range: bool (n,)."""

    @property
    @abstractmethod
    def fitted_range(self) -> tuple[float, float] | None:
        """Lowest and highest conditions of the fit, relative to the reference run; None in states of older versions.

        Pileup for a saturating response, the ratio a/b for a quadratic one.
        """
