"""The evidence that lumisections do not belong to the known run nearest to them: Bayes factors of channels and readout boxes.

Residuals r to the expectation under the known run, in standard deviations, are summed over the window of each lumisection.
h is the derivative of a channel's expected count by log(events), g that by log(rate), both in deviations.

* Channels. The pull z = sum h r / error is the standardised change of a channel's counts, with the errors of both runs. Its
  density is N(0, 1) in a known run. In a new run it is N(0, 1 + 30) for a faulty channel (2 of 1000); for the others it is
  N(0, 1 + drift) in one half of new runs, and N(0, 1) in the other half.
* Boxes. In a new run, 2 % of the readout boxes have a common mode of another spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dqmstream.learners.closed_form.density import clipped
from dqmstream.learners.closed_form.marginal import mode_log_likelihood
from dqmstream.learners.monitoring.stretches import WINDOW, window_sums
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.observation import Observation
from dqmstream.learners.response.rings import medians

FAULT = 2e-3
"""Probability that a channel of a new run is faulty."""

FAULT_VARIANCE = 30.0
"""Variance of the pull of a faulty channel beyond 1."""

MODE = 0.02
"""Probability that the common mode of a readout box has another spread in a new run."""

MODE_SPREADS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Spreads that it may have, with equal probability."""

ODD = 3.0
"""Mean square of a channel's pulls in a run from which it stands out there (`monitoring.scatter`); 1 if it follows the law."""

EXPECTATION_ERROR = 7e-4
"""Relative error of an expected count that does not average out over lumisections. Channels that fire in nearly every event
have smaller counting errors than this (docs/decisions/2026-11-29-closed-forms.md)."""


@dataclass(frozen=True, eq=False)
class KnownRows:
    """What is known of the runs, a row for those that share one.

    gains, errors: (rows, live). uncertain: the errors again where gains of some channels come from other runs
    (`Reference.rates_uncertain`), else 0, (rows, live). variances: of the common modes, (rows, B). row: row of each class,
    (classes,). drift: variance of a gain from run to run, (live,). spread: variance of a pull over that of the law
    (`monitoring.scatter`), (rows, live).
    """

    gains: np.ndarray
    errors: np.ndarray
    uncertain: np.ndarray
    variances: np.ndarray
    row: np.ndarray
    drift: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of lumisections, each under one known row.

    row: (n,). noise: residuals r in deviations, leverage: h, rate_leverage: g, expected: expected counts; all (n, live).
    """

    row: np.ndarray
    noise: np.ndarray
    leverage: np.ndarray
    rate_leverage: np.ndarray
    expected: np.ndarray

    @classmethod
    def of(cls, known: KnownRows, row: np.ndarray, observed: Observation, ring: np.ndarray, blank: np.ndarray) -> Residuals:
        """Residuals of lumisections under a row each, (n,), with the median change of each ring removed; 0 where blank, (n,).

        Removing the median makes changes of luminosity and calibration invisible.
        """
        under = observed.under(known.gains[row])
        noise, leverage = clipped(under), under.leverage
        share = np.divide(noise, leverage, out=np.zeros_like(noise), where=leverage > 0)
        of_ring = medians(share, ring)
        expected = under.deviation * leverage * (1 + of_ring)
        noise, by_rate = noise - leverage * of_ring, under.rate_leverage
        if blank.any():
            noise, leverage, by_rate = (np.where(blank[:, None], 0.0, value) for value in (noise, leverage, by_rate))
        return cls(row, noise, leverage, by_rate, expected)

    def sums(self, total: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Totals over lumisections of h², h r and h g, for each channel. total: sums an array (n, live) over lumisections."""
        squares, onto, by_gain = map(total, (self.leverage**2, self.leverage * self.noise, self.leverage * self.rate_leverage))
        return squares, onto, by_gain


def pulls(known: KnownRows, row: np.ndarray, squares: np.ndarray, onto: np.ndarray, by_gain: np.ndarray) -> np.ndarray:
    """Standardised change of each channel's counts, 0 without information: (n, live), from `Residuals.sums`. row: (n,).

    Its error adds those of the counts, of the known run's gain and of the expectation; it is larger where counts scatter more.
    """
    variance = squares + (by_gain * known.errors[row]) ** 2 + (squares * EXPECTATION_ERROR) ** 2
    error = np.sqrt(variance * known.spread[row])
    return np.divide(onto, error, out=np.zeros_like(onto), where=squares > 0)


def channel_evidence(known: KnownRows, residuals: Residuals, ends: np.ndarray) -> np.ndarray:
    """Log Bayes factor of drifted and faulty channels over none, by the window of each lumisection: (n,)."""
    squares, onto, by_gain = residuals.sums(lambda values: window_sums(values, ends))
    square = pulls(known, residuals.row, squares, onto, by_gain) ** 2
    drifts = np.divide(by_gain**2, squares, out=np.zeros_like(squares), where=squares > 0) * known.drift
    drifts = drifts / known.spread[residuals.row]
    fault = np.log(FAULT) + _widened(square, np.full(1, FAULT_VARIANCE))
    faults = np.logaddexp(np.log1p(-FAULT), fault).sum(axis=1)
    drifted = np.logaddexp(np.log1p(-FAULT) + _widened(square, drifts), fault).sum(axis=1)
    return np.asarray(np.logaddexp(faults, drifted) - np.log(2))


def box_evidence(known: KnownRows, residuals: Residuals, ends: np.ndarray, boxes: ReadoutBoxes) -> np.ndarray:
    """Log Bayes factor of common modes of another spread over those of the known run, by the windows: (n,).

    sum over boxes of log(1 - π + π p(u | another spread) / p(u | spread of the known run)), π = `MODE`. Gains that come from
    other runs have the same error in all lumisections of a window; such channels have less weight. A box with channels that
    stand out in the known run is left out, since they have moved its common mode too.
    """
    mode = residuals.rate_leverage
    weighted = mode / (1 + WINDOW * (mode * known.uncertain[residuals.row]) ** 2) / known.spread[residuals.row]
    information, projection = boxes.sums(mode * weighted), boxes.sums(weighted * residuals.noise)
    known_mode = boxes.sums(known.spread >= ODD) == 0
    own = window_sums(mode_log_likelihood(known.variances[residuals.row], information, projection), ends)
    spreads = [mode_log_likelihood(spread**2, information, projection) for spread in MODE_SPREADS]
    others = [window_sums(of_spread, ends) - own for of_spread in spreads]
    another = np.logaddexp.reduce(others, axis=0) - np.log(len(others))
    of_box = np.logaddexp(np.log1p(-MODE), np.log(MODE) + another)
    return np.asarray(np.where(known_mode[residuals.row], of_box, 0.0).sum(axis=1))


def _widened(square: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log N(z; 0, 1 + variance) / N(z; 0, 1), from z²."""
    return np.asarray(0.5 * (square * variance / (1 + variance) - np.log1p(variance)))
