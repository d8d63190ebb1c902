"""What moves from lumisection to lumisection: groups of channels whose rates depend on a hidden number.

A movement multiplies the rates of its channels by factors with mean 1, so that the mean rate is the same with and without it.
The factors depend on one hidden number of each lumisection. `draw` draws it, and `grid` gives its values with their
probabilities, so that a likelihood can sum over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.polynomial.chebyshev import chebvander

from dqmstream.experiments.simulator.detector import LIVE
from dqmstream.lumisection import IETA, IPHI

RINGS = np.broadcast_to(IETA[:, None], LIVE.shape)[LIVE]
"""ieta of each live channel, (932,)."""

ANGLES = 2 * np.pi * np.broadcast_to(IPHI, LIVE.shape)[LIVE] / IPHI.size
"""Azimuth of each live channel, (932,)."""

_TAIL_SIGMAS = 4.5
_FISHER_PER_CHANNEL = 1000.0
"""At most so much information on the logarithm of its rate has a channel in a lumisection of 1500 events."""

_NODES = 9
"""Values of z at which a likelihood is computed. Between them its logarithm is a polynomial: it is nearly quadratic in z."""

_PLACES = 72


@dataclass(frozen=True, slots=True, eq=False)
class HiddenGrid:
    """Values of a hidden number, to sum a likelihood over.

    factors: on the rates of the channels at each value, (values, channels). log_weights: logarithms of the probabilities of the
    values, (values,). nodes: factors at those values at which a log-likelihood is computed, (nodes, channels). between: the
    log-likelihoods of the values are those of the nodes times this matrix, (nodes, values).
    """

    factors: np.ndarray
    log_weights: np.ndarray
    nodes: np.ndarray
    between: np.ndarray

    def of(self, kept: np.ndarray) -> HiddenGrid:
        """The same for some of the channels. kept: bool, (channels,)."""
        return replace(self, factors=self.factors[:, kept], nodes=self.nodes[:, kept])


class Movement(Protocol):
    """A group of channels with one hidden number in each lumisection."""

    @property
    def channels(self) -> np.ndarray:
        """Indices among the live channels."""
        ...

    def draw(self, lumisections: int, rng: np.random.Generator) -> np.ndarray:
        """Factors on the rates of the channels in each lumisection, (n, channels)."""
        ...

    def grid(self) -> HiddenGrid:
        """The values of the hidden number."""
        ...

    def truth(self) -> dict[str, object]:
        """The movement, ready for JSON."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Swaying:
    """Channels move by 1 + sigma * z * shape, where z is a standard normal number, independent in each lumisection.

    what: its parameters, for the truth. shape: of the channels, (channels,), at most about 1.
    """

    what: dict[str, object]
    channels: np.ndarray
    shape: np.ndarray
    sigma: float

    def draw(self, lumisections: int, rng: np.random.Generator) -> np.ndarray:
        return self._factors(rng.standard_normal(lumisections))

    def grid(self) -> HiddenGrid:
        """Equal steps up to 4.5 sigma, not wider than the likelihood of the counts of a lumisection."""
        width = 1 / (self.sigma * np.sqrt(_FISHER_PER_CHANNEL * np.square(self.shape).sum()))
        z = np.linspace(-_TAIL_SIGMAS, _TAIL_SIGMAS, 2 * int(np.ceil(_TAIL_SIGMAS / np.clip(1.2 * width, 0.05, 0.5))) + 1)
        nodes = _TAIL_SIGMAS * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
        at_nodes, at_values = (chebvander(at / _TAIL_SIGMAS, _NODES - 1) for at in (nodes, z))
        return HiddenGrid(
            self._factors(z),
            -0.5 * z**2 - np.log(np.exp(-0.5 * z**2).sum()),
            self._factors(nodes),
            np.linalg.solve(at_nodes.T, at_values.T),
        )

    def truth(self) -> dict[str, object]:
        return {**self.what, "sigma": self.sigma}

    def _factors(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(1 + self.sigma * z[:, None] * self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Wandering:
    """A pattern turns around the detector: channels move by 1 + amplitude * shape * profile(azimuth - place).

    what: its parameters, for the truth. shape: of the channels, (channels,). wavenumber: the profile is
    cos(wavenumber * azimuth); 0 for a bump exp(-(azimuth / width)**2 / 2) less its mean over the circle. The place is uniform
    on the circle and walks by a normal step of `step` radians (over the wavenumber) from lumisection to lumisection.
    """

    what: dict[str, object]
    channels: np.ndarray
    shape: np.ndarray
    amplitude: float
    wavenumber: int
    width: float
    step: float

    def draw(self, lumisections: int, rng: np.random.Generator) -> np.ndarray:
        steps = self.step / max(self.wavenumber, 1) * rng.standard_normal(lumisections)
        return self._factors(rng.uniform(0, 2 * np.pi) + np.cumsum(steps))

    def grid(self) -> HiddenGrid:
        """Equal steps around the circle, or around one period of a wave."""
        factors = self._factors(np.arange(_PLACES) / _PLACES * 2 * np.pi / max(self.wavenumber, 1))
        return HiddenGrid(factors, np.full(_PLACES, -np.log(_PLACES)), factors, np.eye(_PLACES))

    def truth(self) -> dict[str, object]:
        return {**self.what, "amplitude": self.amplitude, "step": self.step}

    def _factors(self, places: np.ndarray) -> np.ndarray:
        distance = ANGLES[self.channels] - places[:, None]
        return np.asarray(1 + self.amplitude * self.shape * self._profile(distance))

    def _profile(self, distance: np.ndarray) -> np.ndarray:
        if self.wavenumber:
            return np.cos(self.wavenumber * distance)
        return self._bump(distance) - self._bump(np.linspace(-np.pi, np.pi, 720, endpoint=False)).mean()

    def _bump(self, distance: np.ndarray) -> np.ndarray:
        wrapped = (distance + np.pi) % (2 * np.pi) - np.pi
        return np.exp(-0.5 * (wrapped / self.width) ** 2)


@dataclass(frozen=True, slots=True, eq=False)
class PileupThreshold:
    """The rates of a readout box are multiplied by 1 + slope * (R - threshold) where the pileup R is above the threshold."""

    side: int
    n: int
    channels: np.ndarray
    threshold: float
    slope: float

    def factor(self, pileup: np.ndarray) -> np.ndarray:
        """Factor on the rates of the box at each pileup; the shape is that of pileup."""
        return np.asarray(1 + self.slope * np.maximum(pileup - self.threshold, 0.0))

    def truth(self) -> dict[str, object]:
        return {"side": self.side, "n": self.n, "threshold": self.threshold, "slope": self.slope}
