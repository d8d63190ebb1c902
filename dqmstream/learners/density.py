"""The density of lumisections in each of many runs, given the gains of a run and the spreads of its boxes' common modes.

The law is that of `learners.statistical`. Almost all of its squares come of products of matrices, one for a block of runs at
once: a channel's noise in run k is r - h d_k wherever it cannot reach the cut at ±10, whatever run of the block is asked, and
±10 where it is beyond it in each of them. What is neither, and what is dead or far from its channel's usual gain in a run, is
gone through one by one: it is little, and does not follow how many channels were ever faulty in some run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.learners.modes import Look, Modes
from dqmstream.learners.reference import CLIP

DEAD = -0.5
"""A gain below this is no smaller rate: the channel counts nothing, whatever the pileup."""

_ELEMENTS = 1 << 18
"""Numbers of a block of noise, 2 MB: lumisections times runs times channels."""

_ODD = 0.1
"""A gain that is farther from its channel's median over a block's runs counts as odd."""

_TOGETHER = 64
"""Runs of a block. Runs that follow each other are like each other, and so fewer channels may reach the cut in some of them
only: of 512 rows of a `year` 6 % of the channels in all rows together, 1 % in 64."""


def leverage_of(look: Look, gain: np.ndarray) -> np.ndarray:
    """By how many deviations the counts move where gains (live,) or (n, live) are 1: (n, live)."""
    return np.where(gain <= DEAD, look.count_leverage, look.rate_leverage)


def without(look: Look, gain: np.ndarray) -> np.ndarray:
    """What is left of the residuals when a run's gains are taken out, cut at ±10: (n, live)."""
    left = look.residual - leverage_of(look, gain) * gain
    return np.clip(left, -CLIP, CLIP, out=left)


def mode_log_likelihood(variance: float | np.ndarray, information: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """By how much a mode of that variance raises the log-likelihood: h'h and h'r of its leverages h and the noise r."""
    stretched = 1 + variance * information
    return 0.5 * (variance * projection**2 / stretched - np.log(stretched))


@dataclass(frozen=True, eq=False)
class _Block:
    """Some runs that follow each other, at most `_TOGETHER`.

    at: their columns. gains: (runs, live); of_channel: the same, (live, runs). odd: runs, ascending, and channels of gains that
    are no usual ones. usual: medians, (live,). plain: the gains, with usual ones in the place of odd ones, (runs, live);
    squares, lowest, highest: of these.
    """

    at: slice
    gains: np.ndarray
    of_channel: np.ndarray
    odd: tuple[np.ndarray, ...]
    usual: np.ndarray
    plain: np.ndarray
    squares: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def of(cls, all_gains: np.ndarray, start: int) -> _Block:
        """Of the runs from `start` on; all_gains: of every run."""
        at = slice(start, min(start + _TOGETHER, len(all_gains)))
        gains = all_gains[at]
        usual = np.median(gains, axis=0)
        odd = (gains <= DEAD) | (np.abs(gains - usual) > _ODD)
        plain = np.where(odd, usual, gains)
        by_channel = np.ascontiguousarray(gains.T)
        return cls(at, gains, by_channel, np.nonzero(odd), usual, plain, plain**2, plain.min(axis=0), plain.max(axis=0))


class Runs:
    """What is asked of lumisections, worked out once for all of them.

    gains: (runs, live). variances: of the boxes' common modes, (runs, B).
    """

    def __init__(self, gains: np.ndarray, variances: np.ndarray) -> None:
        self.gains, self.variances = gains, variances
        self.blocks = [_Block.of(gains, start) for start in range(0, len(gains), _TOGETHER)]
        self.with_mode = [np.flatnonzero(of_box) for of_box in variances.T]
        """Runs in which a box has a common mode, of each box."""

    def __len__(self) -> int:
        return len(self.gains)


def log_densities(look: Look, modes: Modes, runs: Runs) -> np.ndarray:
    """Log-densities of lumisections in each run, but for what all runs have in common: (n, runs).

    With v = 1 / (1/σ² + h'h) of each box, h its leverages, the inverse of its channels' covariance is 1 - h v h' (Woodbury);
    E and R are then integrated over, each with a flat prior.
    """
    directions = (look.count_leverage, look.count_leverage * modes.sensitivity)
    square, projection = _squares(look, runs, directions)
    score = -0.5 * square
    inner = {(i, j): np.einsum("nc,nc->n", directions[i], directions[j])[:, None] for i, j in ((0, 0), (0, 1), (1, 1))}
    quiet = ~runs.variances.any(axis=1)
    score[:, quiet] += _free([along[:, quiet] for along in projection], inner)
    if quiet.all():
        return score
    product = {ij: np.tile(of_all, len(runs)) for ij, of_all in inner.items()}
    for box, has in enumerate(runs.with_mode):
        if not has.size:
            continue
        cells, variance = modes.cells[box], runs.variances[has, box]
        mode = directions[1][:, cells]
        information = np.einsum("nc,nc->n", mode, mode)[:, None]
        along_mode = _noise_along(look.of(cells), runs.gains[np.ix_(has, cells)], mode)
        score[:, has] += mode_log_likelihood(variance, information, along_mode)
        weight = variance / (1 + variance * information)
        along = [np.einsum("nc,nc->n", direction[:, cells], mode)[:, None] for direction in directions]
        for i in range(2):
            projection[i][:, has] -= weight * along[i] * along_mode
        for i, j in product:
            product[i, j][:, has] -= weight * along[i] * along[j]
    loud = ~quiet
    score[:, loud] += _free([along[:, loud] for along in projection], {ij: of[:, loud] for ij, of in product.items()})
    return score


def _squares(
    look: Look, runs: Runs, directions: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The sum of squares of the noise in each run, (n, runs), and its products with both directions, (n, runs) each."""
    square = np.empty((len(look.residual), len(runs)))
    onto = np.empty_like(square), np.empty_like(square)
    for block in runs.blocks:
        part = _Part(look, block, directions)
        part.add_far()
        part.add_odd()
        square[:, block.at] = part.square
        for of_all, of_part in zip(onto, part.onto, strict=True):
            of_all[:, block.at] = of_part
    return square, onto


class _Part:
    """What `_squares` says of a block of runs: square and onto, (n, runs)."""

    def __init__(self, look: Look, block: _Block, directions: tuple[np.ndarray, np.ndarray]) -> None:
        """All but what has to be gone through one by one."""
        self._look, self._block, self._directions = look, block, directions
        leverage = look.rate_leverage
        most, least = look.residual - leverage * block.lowest, look.residual - leverage * block.highest
        below, above = most <= -CLIP, least >= CLIP
        self._far = ((least < -CLIP) & ~below) | ((most > CLIP) & ~above)
        """What may reach the cut in some of the runs, (n, live); what is beyond it in all of them is as if it were at it."""
        beyond = below | above
        self._residual = np.where(beyond, np.where(below, -CLIP, CLIP), np.where(self._far, 0.0, look.residual))
        self._leverage = np.where(beyond | self._far, 0.0, leverage)
        cross = self._residual * self._leverage
        self.square = (self._residual**2).sum(axis=1)[:, None] - 2 * cross @ block.plain.T
        self.square += self._leverage**2 @ block.squares.T
        self.onto = [
            np.einsum("nc,nc->n", along, self._residual)[:, None] - (along * self._leverage) @ block.plain.T
            for along in directions
        ]

    def add_far(self) -> None:
        """Add what may reach the cut leaves over in every run."""
        rows, channels = np.nonzero(self._far)
        at_once = max(1, _ELEMENTS // len(self._block.gains))
        for start in range(0, len(rows), at_once):
            row, channel = rows[start : start + at_once], channels[start : start + at_once]
            gain = self._block.of_channel[channel]
            by = [of[row, channel][:, None] for of in (self._look.count_leverage, self._look.rate_leverage)]
            noise = np.clip(self._look.residual[row, channel][:, None] - np.where(gain <= DEAD, *by) * gain, -CLIP, CLIP)
            first = np.flatnonzero(np.diff(row, prepend=-1))
            self.square[row[first]] += np.add.reduceat(noise**2, first, axis=0)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[row[first]] += np.add.reduceat(noise * along[row, channel][:, None], first, axis=0)

    def add_odd(self) -> None:
        """Put what odd gains leave over in the place of what usual ones would."""
        runs, channels = self._block.odd
        at_once = max(1, _ELEMENTS // len(self._far))
        for start in range(0, len(runs), at_once):
            run, channel = runs[start : start + at_once], channels[start : start + at_once]
            gain = self._block.gains[run, channel]
            noise = without(self._look.of(channel), gain)
            as_usual = self._residual[:, channel] - self._leverage[:, channel] * self._block.usual[channel]
            # Where it may reach the cut it was added as it is.
            seen_to = self._far[:, channel]
            first = np.flatnonzero(np.diff(run, prepend=-1))
            self.square[:, run[first]] += np.add.reduceat(np.where(seen_to, 0.0, noise**2 - as_usual**2), first, axis=1)
            more = np.where(seen_to, 0.0, noise - as_usual)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[:, run[first]] += np.add.reduceat(more * along[:, channel], first, axis=1)


def _noise_along(look: Look, gains: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Products of the noise in each run with a direction (n, cells): (n, runs); gains: (runs, cells)."""
    onto = np.empty((len(look.residual), len(gains)))
    at_once = max(1, _ELEMENTS // look.residual.size)
    for start in range(0, len(gains), at_once):
        part = slice(start, start + at_once)
        onto[:, part] = np.einsum("nrc,nc->nr", without(look.beside_runs(), gains[part]), direction)
    return onto


def _free(projection: list[np.ndarray], product: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The same for two directions of any size: p' A⁻¹ p / 2 - log det A / 2; nothing where A is singular (no light)."""
    a, b, c = product[0, 0], product[0, 1], product[1, 1]
    determinant = a * c - b * b
    lit = determinant > 1e-9 * a * c
    inside = c * projection[0] ** 2 - 2 * b * projection[0] * projection[1] + a * projection[1] ** 2
    safe = np.where(lit, determinant, 1.0)
    return np.where(lit, 0.5 * inside / safe - 0.5 * np.log(safe), 0.0)
