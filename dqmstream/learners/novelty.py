"""Is this a run that is known? The evidence of a lumisection and those before it against the known run nearest to them.

Beside every learner stands a statistical memory (`learners.statistical`). What is left of the residuals of a run's last 30
lumisections under the known run nearest to them gives each channel a pull z, and each readout box a common mode:

    score = log of the density of z where channels may have drifted or be faulty, over that where nothing happened
          + sum over boxes of log (1 - π + π p(u | another spread) / p(u | the spread of the known run))

A single lumisection shows a fault or a box; a drift of all channels shows in the sum of many alone. How probable the known
runs are says nothing of this: a run that has drifted on is the more surely taken for the last known one.

It is the logarithm of a Bayes factor, so that of lumisections of a known run a share of exp(-score) at most scores as high, if
the densities are right (an e-value: Vovk and Wang, Ann. Stat. 49 (2021) 1736). No past scores are kept for a p-value.

A gain and the median of each ring are free, so that neither luminosity nor calibration is news; and a pull carries the
error of the known run's gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.density import leverage_of, mode_log_likelihood, without
from dqmstream.learners.reference import Reference
from dqmstream.learners.response import medians
from dqmstream.learners.statistical import MEDIAN_OF_SQUARE, Statistical
from dqmstream.learners.strategy import Maps, Past, RunData
from dqmstream.lumisection import Geometry

WINDOW = 30
"""Lumisections that a score looks at: its own and those of its run before it."""

MEMORY_BYTES = 250_000
"""Of the statistical memory: 120 runs, then those that are alike share a row."""

FAULT, FAULT_VARIANCE = 2e-3, 30.0
"""Share of channels that a new run may have as faults, and the variance that their pulls have then."""

MODE, MODE_SPREADS = 0.02, (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Share of readout boxes that may have another spread in a new run, and the spreads that are tried."""

DRIFTING = 20
"""Known runs, the last ones, that say how far a run drifts from the one most like it."""

UNSURE = 7e-4
"""Error of what a channel should count, as a share, however many lumisections are added up. Where channels fire in nearly every
event counting alone is surer than the response is: on `null` pulls of known runs' last lumisections spread by 1.4 there."""

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Noted:
    """Of n lumisections of a run: score, the larger the less like a known run, float64 (n,); nearest: known run by its
    class, int (n,)."""

    score: np.ndarray
    nearest: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """Bound on the share of lumisections of a known run that score as high: min(1, exp(-score)), (n,)."""
        return np.exp(-np.maximum(self.score, 0.0))


@dataclass(frozen=True, eq=False)
class Deviation:
    """Of a run's lumisections together against known run `nearest` (its class): pull, expected and seen counts a lumisection,
    float64, all (live,)."""

    nearest: int
    pull: np.ndarray
    expected: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the runs, a row for those that share one: gains and their errors, (rows, live); variances of the
    boxes' modes, (rows, B); of each class its row; variance of a drift, (live,)."""

    gains: np.ndarray
    errors: np.ndarray
    variances: np.ndarray
    row: np.ndarray
    drift: np.ndarray


@dataclass(frozen=True, eq=False)
class _Left:
    """What lumisections leave over under the runs of a row, their leverages, and what they should count, (n, live) all."""

    row: int
    noise: np.ndarray
    leverage: np.ndarray
    expected: np.ndarray


class Novelty:
    """Learns every run beside a learner, and says of lumisections how unlike all known runs they are."""

    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.statistical = Statistical(geometry, seed, MEMORY_BYTES)
        self._cached: _Known | None = None

    @property
    def classes(self) -> int:
        """Number of runs learnt so far."""
        return self.statistical.classes

    @property
    def live(self) -> np.ndarray:
        """bool, (depth, 64, 72): the channels that are looked at."""
        return self.statistical.reference.live

    def look_through(self, reference: Reference) -> None:
        """As a `Strategy` does."""
        self.statistical.look_through(reference)

    def learn(self, experience: int, run: RunData, past: Past) -> None:
        """Learn the next experience, as a `Strategy` does."""
        self.statistical.learn(experience, run, past)
        self._cached = None

    def look(self, maps: Maps) -> Noted:
        """Score lumisections of one run, in their order. Raises InputError before the first run.

        A score depends on its own lumisection and on up to 29 of those before it, never on one that follows.
        """
        if not self.classes:
            raise InputError("no run is known yet: learn one before asking whether another is new")
        score, nearest = np.empty(len(maps)), np.empty(len(maps), dtype=np.int64)
        for start in range(0, len(maps), _CHUNK):
            before = max(0, start - WINDOW + 1)
            counts = maps.counts[before : start + _CHUNK][:, self.live].astype(np.float64)
            near = _trailing(self.statistical.scores_of_live(counts)).argmax(axis=1)
            chunk = np.empty(len(counts))
            for place, left in self._by_row(counts, near):
                chunk[place] = (self._channels(left) + self._boxes(left))[place]
            score[start : start + _CHUNK], nearest[start : start + _CHUNK] = chunk[start - before :], near[start - before :]
        return Noted(score, nearest)

    def deviation(self, maps: Maps) -> Deviation:
        """All lumisections of a run together against the known run that they are nearest to.

        Pulls are divided by the spread of their middle where that is above 1 (an empirical null: Efron, J. Am. Stat. Assoc.
        99 (2004) 96): what moves all channels alike is no find of one channel.
        """
        counts = maps.counts[:, self.live].astype(np.float64)
        near = int(self.statistical.scores_of_live(counts).sum(axis=0).argmax())
        _, left = next(self._by_row(counts, np.full(len(counts), near)))
        squares, onto = (left.leverage**2).sum(axis=0), (left.leverage * left.noise).sum(axis=0)
        pull = self._pull(left.row, squares, onto)
        pull = pull / max(1.0, float(np.sqrt(np.median(pull**2) / MEDIAN_OF_SQUARE)))
        return Deviation(near, pull, left.expected.mean(axis=0), counts.mean(axis=0))

    @property
    def _known(self) -> _Known:
        if self._cached is None:
            gains, errors, variances, row = self.statistical.known()
            self._cached = _Known(gains, errors, variances, row, self._drift(gains, errors))
        return self._cached

    def _drift(self, gains: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Variance of a gain between one of the last known runs and the one most like it, the same in each ring: (live,)."""
        if len(gains) < 2:
            return np.zeros(gains.shape[1])
        found = []
        for row in range(max(0, len(gains) - DRIFTING), len(gains)):
            variance = errors**2 + errors[row] ** 2
            apart = (gains - gains[row]) ** 2 / variance
            middle = np.median(apart, axis=1)
            middle[row] = np.inf
            least = int(middle.argmin())
            excess = np.maximum(medians(apart[least], self.statistical.modes.ring) / MEDIAN_OF_SQUARE - 1, 0)
            found.append(excess * variance[least])
        return np.asarray(np.mean(found, axis=0))

    def _by_row(self, counts: np.ndarray, near: np.ndarray) -> Iterator[tuple[np.ndarray, _Left]]:
        """For each row that is nearest somewhere: where, and what all of the counts (n, live) leave over under it."""
        known, look = self._known, self.statistical.modes.look(counts)
        nearest = known.row[near]
        for row in np.unique(nearest):
            gain = known.gains[row]
            noise, leverage = without(look, gain), look.count_leverage
            share = np.divide(noise, leverage, out=np.zeros_like(noise), where=leverage > 0)
            of_ring = medians(share, self.statistical.modes.ring)
            moved = leverage * (1 + of_ring) + gain * leverage_of(look, gain)
            left = _Left(int(row), noise - leverage * of_ring, leverage, look.deviation * moved)
            yield np.flatnonzero(nearest == row), left

    def _pull(self, row: int, squares: np.ndarray, onto: np.ndarray) -> np.ndarray:
        """Standardised change of each channel's gain over windows (n, live), with the errors of both runs."""
        error = np.sqrt(squares + squares**2 * (self._known.errors[row] ** 2 + UNSURE**2))
        return np.divide(onto, error, out=np.zeros_like(onto), where=squares > 0)

    def _channels(self, left: _Left) -> np.ndarray:
        squares, onto = _trailing(left.leverage**2), _trailing(left.leverage * left.noise)
        square = self._pull(left.row, squares, onto) ** 2
        fault = np.log(FAULT) + _stretched(square, np.full(1, FAULT_VARIANCE))
        faults = np.logaddexp(np.log1p(-FAULT), fault).sum(axis=1)
        drifted = np.logaddexp(np.log1p(-FAULT) + _stretched(square, squares * self._known.drift), fault).sum(axis=1)
        return np.asarray(np.logaddexp(faults, drifted) - np.log(2))

    def _boxes(self, left: _Left) -> np.ndarray:
        modes = self.statistical.modes
        mode = left.leverage * modes.sensitivity
        information, projection = modes.by_box(mode**2), modes.by_box(mode * left.noise)
        own = _trailing(mode_log_likelihood(self._known.variances[left.row], information, projection))
        others = [_trailing(mode_log_likelihood(spread**2, information, projection)) - own for spread in MODE_SPREADS]
        another = np.logaddexp.reduce(others, axis=0) - np.log(len(others))
        return np.asarray(np.logaddexp(np.log1p(-MODE), np.log(MODE) + another).sum(axis=1))

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        return self.statistical.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged or of another detector."""
        self.statistical.restore(state)
        self._cached = None


def _trailing(values: np.ndarray) -> np.ndarray:
    """Sum of each row and up to `WINDOW` - 1 before it."""
    total = np.cumsum(values, axis=0)
    total[WINDOW:] -= total[:-WINDOW].copy()
    return total


def _stretched(square: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log N(z; 0, 1 + variance) / N(z; 0, 1), from z²."""
    return np.asarray(0.5 * (square * variance / (1 + variance) - np.log1p(variance)))
