"""The density of lumisections in each of many runs, given the gains of a run and the spreads of its boxes' common modes.

The law is that of `learners.closed_form.statistical`. Runs that follow each other are like each other, and are gone through in
blocks: the
conditions of a lumisection are settled once under the usual gains of a block, and a channel's noise in run k is then r - h d_k,
the tangent at the usual gain, so that almost all squares of the block come of products of matrices. That holds wherever the
noise cannot reach the cut at ±10, whatever run of the block is asked; where it is beyond it in each of them it is ±10. What is
neither, and gains far from their channel's usual one, such as of dead channels, go through the law itself one by one: it is
little, and does not follow how many channels were ever faulty in some run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.learners.closed_form.prefilter import RULED_OUT, TOGETHER, Shortlist
from dqmstream.learners.response.conditions import DEAD, Conditions, Look, Modes, conditions_under, free_to_move, products_of
from dqmstream.learners.response.reference import CLIP

THINNED = 4
"""One channel of so many settles the conditions under a block's usual gains; what little they are off by then is free."""

_ELEMENTS = 1 << 16
"""Numbers of a block of noise, a quarter of a MB, which stays in a core's cache: lumisections times runs times channels."""

_ODD = 0.1
"""A gain that is farther from its channel's median over a block's runs counts as odd: the tangent is not asked so far."""

_TOGETHER = 64
"""Runs of a block. Of 512 runs of a `year` 6 % of the channels may reach the cut in some run if all are in one block, 1 % in
blocks of 64."""


def cut(look: Look) -> np.ndarray:
    """Residuals, cut at ±10: beyond it a channel is dead or hot, and how much no longer matters."""
    return np.clip(look.residual, -CLIP, CLIP)


def mode_log_likelihood(variance: float | np.ndarray, information: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """By how much a mode of that variance raises the log-likelihood: h'h and h'r of its leverages h and the noise r."""
    stretched = 1 + variance * information
    return 0.5 * (variance * projection**2 / stretched - np.log(stretched))


@dataclass(frozen=True, eq=False)
class _Block:
    """Some runs that follow each other, at most `_TOGETHER`.

    at: their columns. gains: (runs, live). usual: medians, (live,). apart: gains less usual ones, 0 for odd ones, (runs, live).
    odd: runs, ascending, and channels of gains that are no usual ones. variances: of the boxes' modes, (runs, B).
    """

    at: slice
    gains: np.ndarray
    usual: np.ndarray
    apart: np.ndarray
    odd: tuple[np.ndarray, ...]
    variances: np.ndarray

    @property
    def spoilt(self) -> np.ndarray:
        """Channels that are odd in some run or dead in most, bool (live,)."""
        spoilt = self.usual <= DEAD
        spoilt[self.odd[1]] = True
        return spoilt

    @classmethod
    def of(cls, runs: Runs, start: int) -> _Block:
        """Of the runs from `start` on."""
        at = slice(start, min(start + _TOGETHER, len(runs)))
        gains = runs.gains[at].astype(np.float32)
        usual = np.median(gains, axis=0)
        is_odd = np.abs(gains - usual) > _ODD
        return cls(
            at, gains, usual, np.where(is_odd, 0.0, gains - usual), np.nonzero(is_odd), runs.variances[at].astype(np.float32)
        )


class Runs:
    """What is asked of lumisections, worked out once for all of them.

    gains: (runs, live). variances: of the boxes' common modes, (runs, B).
    """

    def __init__(self, gains: np.ndarray, variances: np.ndarray) -> None:
        self.gains, self.variances = gains, variances
        self.blocks = [_Block.of(self, start) for start in range(0, len(gains), _TOGETHER)]
        self.shortlist = (
            Shortlist(gains, np.sum([block.spoilt for block in self.blocks], axis=0)) if len(self.blocks) > 1 else None
        )

    def __len__(self) -> int:
        return len(self.gains)


def log_densities(look: Look, modes: Modes, runs: Runs) -> np.ndarray:
    """Log-densities of lumisections in each run, but for what all runs have in common: float64, (n, runs).

    All is done in float32, half the time of float64, of which a density of some 500 nats is right to a thousandth of one.
    Where a block has no run that comes into question at all (`learners.closed_form.prefilter`) they are what a share of the
    channels says.
    """
    if not len(look.residual):
        return np.empty((0, len(runs)))
    look = look.single()
    if runs.shortlist is None:
        return np.concatenate([_Part(look, block).scores(modes) for block in runs.blocks], axis=1).astype(np.float64)
    of_share, conditions = runs.shortlist.scores(look)
    scores = of_share.astype(np.float64)
    best = scores.max(axis=1)
    wanted = scores > best[:, None] - RULED_OUT
    # The same for every run of a lumisection, so that scores of both kinds compare where the best is.
    scores = runs.shortlist.share * (scores - best[:, None])
    level = np.full(len(scores), -np.inf)
    asked = []
    for block in runs.blocks:
        rows = np.flatnonzero(wanted[:, block.at].any(axis=1))
        asked.append(rows)
        if rows.size:
            near = conditions[block.at.start // TOGETHER].rows(rows)
            exact = _Part(look.rows(rows), block, near).scores(modes)
            scores[rows, block.at] = exact
            level[rows] = np.maximum(level[rows], exact.max(axis=1))
    for block, rows in zip(runs.blocks, asked, strict=True):
        others = np.ones(len(scores), dtype=bool)
        others[rows] = False
        scores[others, block.at] += level[others, None]
    return scores


class _Part:
    """Lumisections and a block of runs. square: minus twice the log-density of all residuals by themselves in each run; onto:
    products of the noise with the two directions that are free, events and pileup; (n, runs) all three."""

    def __init__(self, look: Look, block: _Block, near: Conditions | None = None) -> None:
        """near: what the lumisections show under gains that are nearly the usual ones: a step goes from there."""
        self._look, self._block = look, block
        thinned, usual = look.of(slice(None, None, THINNED)), block.usual[::THINNED]
        self._conditions = conditions_under(thinned, usual, near, steps=1 if near else 2)
        under = look.under(block.usual, self._conditions)
        per_rate = under.per_rate
        slope = look.rate * self._conditions.pileup * per_rate
        self._directions = under.leverage, under.rate * per_rate
        self._residual, self._slope = under.residual, slope
        self._far = np.zeros(slope.shape, dtype=bool)
        self._see_to_the_cut()
        wide = _log_of_products(under.deviation)
        if self._far.any():
            wide -= np.where(self._far, np.log(under.deviation), 0.0).sum(axis=1)
        self._deviation = under.deviation
        alone = np.einsum("nc,nc->n", self._residual, self._residual) + 2 * wide
        self.square = alone[:, None] - 2 * (self._residual * self._slope) @ block.apart.T
        self.square += self._slope**2 @ (block.apart**2).T
        self.onto = [
            np.einsum("nc,nc->n", along, self._residual)[:, None] - (along * self._slope) @ block.apart.T
            for along in self._directions
        ]
        self._add_far()
        self._add_odd()

    def _see_to_the_cut(self) -> None:
        """Where noise is beyond the cut in all of the runs, have it at the cut; where it is in some of them, leave it out."""
        lowest, highest = self._block.apart.min(axis=0), self._block.apart.max(axis=0)
        rows, channels = np.nonzero(np.abs(self._residual) + self._slope * np.maximum(highest, -lowest) > CLIP)
        residual, slope = self._residual[rows, channels], self._slope[rows, channels]
        most, least = residual - slope * lowest[channels], residual - slope * highest[channels]
        below, above = most <= -CLIP, least >= CLIP
        far = ((least < -CLIP) & ~below) | ((most > CLIP) & ~above)
        self._far[rows, channels] = far
        self._residual[rows, channels] = np.select([below, above, far], [-CLIP, CLIP, 0.0], residual)
        self._slope[rows, channels] = np.where(below | above | far, 0.0, slope)

    def _add_far(self) -> None:
        """Add what may reach the cut leaves over in every run."""
        rows, channels = np.nonzero(self._far)
        at_once = max(1, _ELEMENTS // len(self._block.gains))
        for start in range(0, len(rows), at_once):
            row, channel = rows[start : start + at_once], channels[start : start + at_once]
            one = Look(*(of[row, channel][:, None] for of in vars(self._look).values()))
            under = one.under(self._block.gains.T[channel], self._conditions.rows(row))
            noise = cut(under)
            first = np.flatnonzero(np.diff(row, prepend=-1))
            self.square[row[first]] += np.add.reduceat(noise**2 + 2 * np.log(under.deviation), first, axis=0)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[row[first]] += np.add.reduceat(noise * along[row, channel][:, None], first, axis=0)

    def _add_odd(self) -> None:
        """Put what odd gains leave over in the place of what usual ones would."""
        runs, channels = self._block.odd
        at_once = max(1, _ELEMENTS // len(self._far))
        for start in range(0, len(runs), at_once):
            run, channel = runs[start : start + at_once], channels[start : start + at_once]
            under = self._look.of(channel).under(self._block.gains[run, channel], self._conditions)
            noise = cut(under)
            as_usual = self._residual[:, channel]
            # Where it may reach the cut it was added as it is.
            seen_to = self._far[:, channel]
            first = np.flatnonzero(np.diff(run, prepend=-1))
            surprise = noise**2 - as_usual**2 + 2 * np.log(under.deviation / self._deviation[:, channel])
            self.square[:, run[first]] += np.add.reduceat(np.where(seen_to, 0.0, surprise), first, axis=1)
            more = np.where(seen_to, 0.0, noise - as_usual)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[:, run[first]] += np.add.reduceat(more * along[:, channel], first, axis=1)

    def scores(self, modes: Modes) -> np.ndarray:
        """Log-densities, (n, runs).

        With v = 1 / (1/σ² + h'h) of each box, h its leverages, the inverse of its channels' covariance is 1 - h v h'
        (Woodbury); events and pileup are then integrated over, each with a flat prior.
        """
        score = -0.5 * self.square
        inner = products_of(self._directions)
        loud = np.asarray(self._block.variances.any(axis=1))
        score[:, ~loud] += free_to_move([along[:, ~loud] for along in self.onto], inner)
        if not loud.any():
            return score
        inner = {ij: np.tile(of_all, loud.size) for ij, of_all in inner.items()}
        for box, cells in enumerate(modes.cells):
            if self._block.variances[:, box].any():
                score += self._mode(box, cells, inner)
        score[:, loud] += free_to_move([along[:, loud] for along in self.onto], {ij: of[:, loud] for ij, of in inner.items()})
        return score

    def _mode(self, box: int, cells: np.ndarray, inner: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        """By how much the common mode of a box raises the log-densities, (n, runs); takes it out of the directions."""
        variances = self._block.variances[:, box]
        has = np.flatnonzero(variances)
        variance, mode = variances[has], self._directions[1][:, cells]
        information = np.einsum("nc,nc->n", mode, mode)[:, None]
        along_mode = self._noise_along(cells, has, mode)
        raised = np.zeros_like(self.square)
        raised[:, has] = mode_log_likelihood(variance, information, along_mode)
        weight = variance / (1 + variance * information)
        along = [np.einsum("nc,nc->n", direction[:, cells], mode)[:, None] for direction in self._directions]
        for i in range(2):
            self.onto[i][:, has] -= weight * along[i] * along_mode
        for i, j in inner:
            inner[i, j][:, has] -= weight * along[i] * along[j]
        return raised

    def _noise_along(self, cells: np.ndarray, runs: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Products of a box's noise in some of the runs with a direction (n, cells): (n, len(runs))."""
        look, gains = self._look.of(cells), self._block.gains[np.ix_(runs, cells)]
        beside, conditions = look.rows((slice(None), None)), self._conditions.rows((slice(None), None))
        onto = np.empty((len(direction), len(runs)))
        at_once = max(1, _ELEMENTS // direction.size)
        for start in range(0, len(runs), at_once):
            part = slice(start, start + at_once)
            onto[:, part] = np.einsum("nrc,nc->nr", cut(beside.under(gains[part], conditions)), direction)
        return onto


def _log_of_products(values: np.ndarray) -> np.ndarray:
    """Sums of the logarithms of rows, of 6 at once: a logarithm takes ten times as long as a product."""
    return np.asarray(np.log(np.multiply.reduceat(values, np.arange(0, values.shape[1], 6), axis=1)).sum(axis=1))
