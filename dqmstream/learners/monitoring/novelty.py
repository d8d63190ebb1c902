"""Is this a run that is known? The evidence of a lumisection and those before it against the known run nearest to them.

Beside every learner stands a statistical memory (`learners.closed_form.statistical`). What is left of the residuals of a run's
last 30
lumisections under the known run nearest to them gives each channel a pull z, and each readout box a common mode:

    score = log of the density of z where channels may have drifted or be faulty, over that where nothing happened
          + sum over boxes of log (1 - π + π p(u | another spread) / p(u | the spread of the known run))

A single lumisection shows a fault or a box; a drift of all channels shows in the sum of many alone. How probable the known
runs are says nothing of this: a run that has drifted on is the more surely taken for the last known one.

It is the logarithm of a Bayes factor, so that of lumisections of a known run a share of exp(-score) at most scores as high, if
the densities are right (an e-value: Vovk and Wang, Ann. Stat. 49 (2021) 1736). No past scores are kept for a p-value.

A blank lumisection (`learners.blank`) adds nothing to the sums of its window, nor to those of a run's `deviation`.

A gain and the median of each ring are free, so that neither luminosity nor calibration is news; and a pull carries the
error of the known run's gain. Where the first run's pileup was level, channels that are full in it have gains that are those of
other runs. An error of such a gain is the same in all lumisections of a window: what a box says is weighted by it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.closed_form.density import cut, mode_log_likelihood
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.response.conditions import Look
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.response import MEDIAN_OF_SQUARE, medians
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Past
from dqmstream.lumisection import Geometry

WINDOW = 30
"""Lumisections that a score looks at: its own and those of its run before it."""

MEMORY_BYTES = 1_000_000
"""Of the statistical memory: 1002 runs, then those that are alike share a row. What two runs have in common is neither of them,
so that a known run whose row is shared looks new."""

FAULT, FAULT_VARIANCE = 2e-3, 30.0
"""Share of channels that a new run may have as faults, and the variance that their pulls have then."""

MODE, MODE_SPREADS = 0.02, (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Share of readout boxes that may have another spread in a new run, and the spreads that are tried."""

DRIFTING, BEFORE = 20, 256
"""Known runs, the last ones, that say how far a run drifts from the one most like it, among so many of the last ones."""

UNSURE = 7e-4
"""Error of what a channel should count, as a share, however many lumisections are added up. Where channels fire in nearly every
event counting alone is surer than the response is: on `null` pulls of known runs' last lumisections spread by 1.4 there."""

_FAULTS = "faults"
_CHUNK = 256
_SOME = 16
"""One channel of so many gives a first guess at the known run that is most like another."""

_A_LITTLE_MORE = 1 + 1e-5
"""Products and quotients in float32 round otherwise than each other, by less than this."""


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
    boxes' modes, (rows, B); of each class its row; variance of a drift, (live,). unmeasured: errors of the gains where those
    of some channels are what other runs say (`Reference.rates_unsure`), else 0, (rows, live)."""

    gains: np.ndarray
    errors: np.ndarray
    unmeasured: np.ndarray
    variances: np.ndarray
    row: np.ndarray
    drift: np.ndarray


@dataclass(frozen=True, eq=False)
class _Left:
    """What lumisections leave over under a row each, (n,); by how many deviations counts move with events and where a rate
    changes by 100 %, and what they should count; (n, live) all four."""

    row: np.ndarray
    noise: np.ndarray
    leverage: np.ndarray
    rate_leverage: np.ndarray
    expected: np.ndarray

    def sums(self, total: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Totals over lumisections that say of a change of a channel's counts: its information, what the noise says of it, and
        what an error of the gain, by 100 % of the rate, would say of it."""
        products = (self.leverage**2, self.leverage * self.noise, self.leverage * self.rate_leverage)
        squares, onto, by_gain = map(total, products)
        return squares, onto, by_gain


@dataclass(frozen=True, eq=False)
class _Stretch:
    """Lumisections of one run that follow each other. run: its number among those asked about. start, stop: those that are
    to be scored; begin: the first of those before them that are looked at too."""

    run: int
    begin: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.begin


class Novelty:
    """Learns every run beside a learner, and says of lumisections how unlike all known runs they are."""

    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.statistical = Statistical(geometry, seed, MEMORY_BYTES)
        self._faults: FaultScore | None = None
        self._cached: _Known | None = None

    @property
    def classes(self) -> int:
        """Number of runs learnt so far."""
        return self.statistical.classes

    @property
    def live(self) -> np.ndarray:
        """bool, (depth, 64, 72): the channels that are looked at."""
        return self.statistical.reference.live

    @property
    def faults(self) -> FaultScore:
        """What has failed within a run, against gains that are followed beside. Raises InputError before the first run."""
        if self._faults is None:
            raise InputError("no run is known yet: learn one before asking for faults")
        return self._faults

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted on the first run; call it before the first `learn` or `restore`."""
        self.statistical.set_reference(reference)

    def learn(self, experience: int, run: RunData, past: Past) -> None:
        """Learn the next experience, as a `Strategy` does."""
        self.statistical.learn(experience, run, past)
        self._faults = self._faults or FaultScore(self.statistical.reference)
        self._faults.set_reference(self.statistical.reference)
        self._faults.learn(run.part(Part.TRAIN))
        self._cached = None

    def told(self) -> dict[str, Any] | None:
        """What its reference is and was taught (`Reference.told`); None before the first run."""
        return self.statistical.reference.told() if self.classes else None

    def beyond(self, maps: Maps) -> np.ndarray | None:
        """Whether lumisections are under conditions that its reference was not taught, bool (n,); None before the first run."""
        return self.statistical.reference.beyond(maps.counts) if self.classes else None

    def look(self, maps: Maps) -> Noted:
        """Score lumisections of one run, in their order. Raises InputError before the first run.

        A score depends on its own lumisection and on up to 29 of those before it, never on one that follows.
        """
        return self.look_at_each([maps])[0]

    def look_at_each(self, several: Sequence[Maps]) -> list[Noted]:
        """The same of several runs, each by itself; at once, since many runs of few lumisections are mostly calls."""
        if not self.classes:
            raise InputError("no run is known yet: learn one before asking whether another is new")
        noted = [Noted(np.empty(len(maps)), np.empty(len(maps), dtype=np.int64)) for maps in several]
        for stretches in _in_batches([len(maps) for maps in several]):
            counts = [several[one.run].counts[one.begin : one.stop][:, self.live] for one in stretches]
            scored = self._scored(np.concatenate(counts).astype(np.float64), [len(one) for one in stretches])
            for one, (score, nearest) in zip(stretches, scored, strict=True):
                wanted = slice(one.start - one.begin, None)
                noted[one.run].score[one.start : one.stop] = score[wanted]
                noted[one.run].nearest[one.start : one.stop] = nearest[wanted]
        return noted

    def _scored(self, counts: np.ndarray, sizes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score and nearest class of each lumisection, run by run. counts: (n, live), of runs of these sizes in order."""
        look = self.statistical.modes.look(counts)
        untold = self.statistical.reference.blank(counts)
        of_class, ends = self.statistical.scores_of_look(look), np.cumsum(sizes)
        of_class[untold] = 0.0
        near = _trailing(of_class, ends).argmax(axis=1)
        rows = self._known.row[near]
        # A block: all of a run's lumisections under one of the rows that are nearest to some of them.
        runs = [(np.arange(end - size, end), np.unique(rows[end - size : end])) for size, end in zip(sizes, ends, strict=True)]
        blocks = [(places, row) for places, nearest in runs for row in nearest]
        place = np.concatenate([places for places, _ in blocks])
        under = np.repeat([row for _, row in blocks], [len(places) for places, _ in blocks])
        left = self._left_under(under, look.rows(place), untold[place])
        block_ends = np.cumsum([len(places) for places, _ in blocks])
        found = self._channels(left, block_ends) + self._boxes(left, block_ends)
        score = np.empty(len(counts))
        own = under == rows[place]
        score[place[own]] = found[own]
        for size, end in zip(sizes, ends, strict=True):
            yield score[end - size : end], near[end - size : end]

    def deviation(self, maps: Maps) -> Deviation:
        """All lumisections of a run together against the known run that they are nearest to.

        Pulls are divided by the spread of their middle where that is above 1 (an empirical null: Efron, J. Am. Stat. Assoc.
        99 (2004) 96): what moves all channels alike is no find of one channel.
        """
        counts = maps.counts[:, self.live].astype(np.float64)
        untold = self.statistical.reference.blank(counts)
        counts = counts if untold.all() else counts[~untold]
        look = self.statistical.modes.look(counts)
        near = int(self.statistical.scores_of_look(look).sum(axis=0).argmax())
        left = self._left_under(np.full(len(counts), self._known.row[near]), look, np.full(len(counts), untold.all()))
        pull = self._pull(left.row[0], *left.sums(lambda values: values.sum(axis=0)))
        pull = pull / max(1.0, float(np.sqrt(np.median(pull**2) / MEDIAN_OF_SQUARE)))
        return Deviation(near, pull, left.expected.mean(axis=0), counts.mean(axis=0))

    @property
    def _known(self) -> _Known:
        if self._cached is None:
            gains, errors, variances, row = self.statistical.known()
            unmeasured = errors if self.statistical.reference.rates_unsure else np.zeros_like(errors)
            self._cached = _Known(gains, errors, unmeasured, variances, row, self._drift(gains, errors))
        return self._cached

    def _drift(self, gains: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Variance of a gain between one of the last known runs and the one most like it, the same in each ring: (live,)."""
        if len(gains) < 2:
            return np.zeros(gains.shape[1])
        # float32, half the time of float64: 20 times 256 runs are gone through at each run.
        gains, variances = gains[-BEFORE:].astype(np.float32), (errors[-BEFORE:] ** 2).astype(np.float32)
        found = []
        for row in range(max(0, len(gains) - DRIFTING), len(gains)):
            least = most_alike(row, gains, variances)
            both = variances[least] + variances[row]
            excess = medians((gains[least] - gains[row]) ** 2 / both, self.statistical.modes.ring) / MEDIAN_OF_SQUARE - 1
            found.append(np.maximum(excess, 0) * both)
        return np.asarray(np.mean(found, axis=0, dtype=np.float64))

    def _left_under(self, row: np.ndarray, look: Look, untold: np.ndarray) -> _Left:
        """What lumisections leave over, each under a row of its own, (n,); nothing where untold, bool (n,), is True."""
        gain = self._known.gains[row]
        under = look.under(gain)
        noise, leverage = cut(under), under.leverage
        share = np.divide(noise, leverage, out=np.zeros_like(noise), where=leverage > 0)
        of_ring = medians(share, self.statistical.modes.ring)
        expected = under.deviation * leverage * (1 + of_ring)
        noise, by_rate = noise - leverage * of_ring, under.rate_leverage
        if untold.any():
            noise, leverage, by_rate = (np.where(untold[:, None], 0.0, value) for value in (noise, leverage, by_rate))
        return _Left(row, noise, leverage, by_rate, expected)

    def _pull(self, row: np.ndarray, squares: np.ndarray, onto: np.ndarray, by_gain: np.ndarray) -> np.ndarray:
        """Standardised change of each channel's counts over windows (n, live), with the errors of both runs. row: (n,)."""
        error = np.sqrt(squares + (by_gain * self._known.errors[row]) ** 2 + (squares * UNSURE) ** 2)
        return np.divide(onto, error, out=np.zeros_like(onto), where=squares > 0)

    def _channels(self, left: _Left, ends: np.ndarray) -> np.ndarray:
        squares, onto, by_gain = left.sums(lambda values: _trailing(values, ends))
        square = self._pull(left.row, squares, onto, by_gain) ** 2
        drifts = np.divide(by_gain**2, squares, out=np.zeros_like(squares), where=squares > 0) * self._known.drift
        fault = np.log(FAULT) + _stretched(square, np.full(1, FAULT_VARIANCE))
        faults = np.logaddexp(np.log1p(-FAULT), fault).sum(axis=1)
        drifted = np.logaddexp(np.log1p(-FAULT) + _stretched(square, drifts), fault).sum(axis=1)
        return np.asarray(np.logaddexp(faults, drifted) - np.log(2))

    def _boxes(self, left: _Left, ends: np.ndarray) -> np.ndarray:
        modes = self.statistical.modes
        mode = left.rate_leverage
        weighted = mode / (1 + WINDOW * (mode * self._known.unmeasured[left.row]) ** 2)
        information, projection = modes.by_box(mode * weighted), modes.by_box(weighted * left.noise)
        own = _trailing(mode_log_likelihood(self._known.variances[left.row], information, projection), ends)
        spreads = [mode_log_likelihood(spread**2, information, projection) for spread in MODE_SPREADS]
        others = [_trailing(of_spread, ends) - own for of_spread in spreads]
        another = np.logaddexp.reduce(others, axis=0) - np.log(len(others))
        return np.asarray(np.logaddexp(np.log1p(-MODE), np.log(MODE) + another).sum(axis=1))

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        return self.statistical.state() | (prefixed(_FAULTS, self._faults.state()) if self._faults else {})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged or of another detector."""
        self.statistical.restore(state)
        self._faults = FaultScore(self.statistical.reference) if self.classes else None
        if self._faults:
            self._faults.restore(within(state, _FAULTS))
        self._cached = None

    @staticmethod
    def holds_all(state: Mapping[str, np.ndarray]) -> bool:
        """Whether a state is there, and not from before there was a fault score."""
        return bool(within(state, _FAULTS))


def _in_batches(sizes: list[int]) -> Iterator[list[_Stretch]]:
    """Runs of so many lumisections in stretches of `_CHUNK` at most, and as many of these at once as make one of it."""
    batch: list[_Stretch] = []
    for run, size in enumerate(sizes):
        for start in range(0, size, _CHUNK):
            batch.append(_Stretch(run, max(0, start - WINDOW + 1), start, min(start + _CHUNK, size)))
            if sum(map(len, batch)) >= _CHUNK:
                yield batch
                batch = []
    if batch:
        yield batch


def most_alike(row: int, gains: np.ndarray, variances: np.ndarray) -> int:
    """The other row whose gains have the least median of squared pulls to those of this one; gains and the squares of their
    errors, (rows, live) both."""

    def median_of(others: np.ndarray) -> np.ndarray:
        return np.asarray(np.median((gains[others] - gains[row]) ** 2 / (variances[others] + variances[row]), axis=1))

    square, variance = (gains - gains[row]) ** 2, variances + variances[row]
    likely = np.median(square[:, ::_SOME] / variance[:, ::_SOME], axis=1)
    likely[row] = np.inf
    bound = median_of(np.array([likely.argmin()]))[0]
    # A median is above the bound where most values are, which is counted in a fraction of the time that a median takes.
    variance *= bound * _A_LITTLE_MORE
    below = np.count_nonzero(square <= variance, axis=1)
    below[row] = 0
    others = np.flatnonzero(2 * below >= gains.shape[1] - 1)
    return int(others[median_of(others).argmin()])


def _trailing(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum of each row and up to `WINDOW` - 1 before it, in pieces that end there: nothing is taken from the piece before."""
    out = np.empty_like(values)
    for begin, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        total = np.cumsum(values[begin:end], axis=0, out=out[begin:end])
        total[WINDOW:] -= total[:-WINDOW].copy()
    return out


def _stretched(square: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log N(z; 0, 1 + variance) / N(z; 0, 1), from z²."""
    return np.asarray(0.5 * (square * variance / (1 + variance) - np.log1p(variance)))
