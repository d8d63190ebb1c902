"""Log-density of lumisections in each of many known runs, given the gains of a run and its common modes.

The model is that of `closed_form.statistical`. Up to 64 consecutive runs, which are alike, are handled together as a block:

* The conditions of a lumisection are fitted once, with the block's usual gains (the medians over its runs).
* The residual of channel c in run k is then linear, r_c - h_c (d_kc - usual gain), with the derivative h at the usual gain.
  Sums of squares over channels become matrix products.
* Residuals are cut at ±10. A channel that is beyond the cut in every run of the block counts 10. A channel that is beyond it in
  some runs only, and gains far from the usual one (dead channels, say), are evaluated one by one without the linear
  approximation. They are few, whatever the number of runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.learners.closed_form.marginal import inner_products, integrated_out, mode_log_likelihood
from dqmstream.learners.closed_form.prefilter import PREFILTER_BLOCK, RULED_OUT, Prefilter
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.conditions import DEAD, fit_conditions
from dqmstream.learners.response.observation import ConditionFactors, Observation
from dqmstream.learners.response.reference import CLIP

THINNED = 4
"""Every 4th channel is used to fit conditions with a block's usual gains. Their error is small, and integrated out anyway."""

_ELEMENTS = 1 << 16
"""Numbers (lumisections x runs x channels) handled at once: a quarter of a MB, which fits in a core's cache."""

_ODD = 0.1
"""A gain farther than this from the block's usual one is odd: too far for the linear approximation."""

_BLOCK_RUNS = 64
"""Runs of a block (docs/decisions/2026-11-29-closed-forms.md)."""


def clipped(observed: Observation) -> np.ndarray:
    """Residuals cut at ±10 deviations. A channel beyond it is dead or hot, whatever the exact value."""
    return np.clip(observed.residual, -CLIP, CLIP)


@dataclass(frozen=True, eq=False)
class _Block:
    """Up to 64 consecutive runs.

    at: their columns. gains: (runs, live). usual: medians over the runs, (live,). apart: gains minus usual ones, 0 for odd
    ones, (runs, live). odd: positions of odd gains: runs, ascending, and channels. variances: of the boxes' common modes,
    (runs, B).
    """

    at: slice
    gains: np.ndarray
    usual: np.ndarray
    apart: np.ndarray
    odd: tuple[np.ndarray, ...]
    variances: np.ndarray

    @property
    def faulty(self) -> np.ndarray:
        """Channels with an odd gain in some run, or dead in most: bool (live,)."""
        faulty = self.usual <= DEAD
        faulty[self.odd[1]] = True
        return faulty

    @classmethod
    def of(cls, runs: KnownRuns, start: int) -> _Block:
        """The block that starts at a run."""
        at = slice(start, min(start + _BLOCK_RUNS, len(runs)))
        gains = runs.gains[at].astype(np.float32)
        usual = np.median(gains, axis=0)
        is_odd = np.abs(gains - usual) > _ODD
        return cls(
            at, gains, usual, np.where(is_odd, 0.0, gains - usual), np.nonzero(is_odd), runs.variances[at].astype(np.float32)
        )


class KnownRuns:
    """The runs to compare with, prepared once for all lumisections.

    gains: (runs, live). variances: of the common modes of the readout boxes, (runs, B). prefilter: None for a single block.
    """

    def __init__(self, gains: np.ndarray, variances: np.ndarray) -> None:
        self.gains, self.variances = gains, variances
        self.blocks = [_Block.of(self, start) for start in range(0, len(gains), _BLOCK_RUNS)]
        self.prefilter = (
            Prefilter(gains, np.sum([block.faulty for block in self.blocks], axis=0)) if len(self.blocks) > 1 else None
        )

    def __len__(self) -> int:
        return len(self.gains)


def log_densities(observed: Observation, boxes: ReadoutBoxes, runs: KnownRuns) -> np.ndarray:
    """Log-density of each lumisection in each run, up to a constant common to all runs: float64, (n, runs).

    Computed in float32, twice as fast as float64; a density of some 500 nats is then right to .001. For a block of which the
    prefilter drops all runs, the prefilter's values are returned, scaled to all channels.
    """
    if not len(observed.residual):
        return np.empty((0, len(runs)))
    observed = observed.single()
    if runs.prefilter is None:
        exact = [_BlockDensity(observed, block).scores(boxes) for block in runs.blocks]
        return np.concatenate(exact, axis=1).astype(np.float64)
    of_share, conditions = runs.prefilter.scores(observed)
    scores = of_share.astype(np.float64)
    best = scores.max(axis=1)
    wanted = scores > best[:, None] - RULED_OUT
    # Prefilter values are relative to the best run, so they compare with exact values relative to the best exact one.
    scores = runs.prefilter.share * (scores - best[:, None])
    level = np.full(len(scores), -np.inf)
    evaluated = []
    for block in runs.blocks:
        rows = np.flatnonzero(wanted[:, block.at].any(axis=1))
        evaluated.append(rows)
        if rows.size:
            near = conditions[block.at.start // PREFILTER_BLOCK].rows(rows)
            of_block = _BlockDensity(observed.rows(rows), block, near).scores(boxes)
            scores[rows, block.at] = of_block
            level[rows] = np.maximum(level[rows], of_block.max(axis=1))
    for block, rows in zip(runs.blocks, evaluated, strict=True):
        others = np.ones(len(scores), dtype=bool)
        others[rows] = False
        scores[others, block.at] += level[others, None]
    return scores


class _BlockDensity:
    """Densities of lumisections in the runs of a block.

    square: -2 x the log-density of all residuals without free directions. onto: inner products of the residuals with the
    derivatives by events and by pileup. All (n, runs).
    """

    def __init__(self, observed: Observation, block: _Block, near: ConditionFactors | None = None) -> None:
        """near: conditions fitted with almost the same gains; one step from there is enough."""
        self._observed, self._block = observed, block
        thinned, usual = observed.of(slice(None, None, THINNED)), block.usual[::THINNED]
        self._conditions = fit_conditions(thinned, usual, near, steps=1 if near else 2)
        under = observed.under(block.usual, self._conditions)
        per_rate = under.per_rate
        slope = observed.rate * self._conditions.pileup * per_rate
        self._directions = under.leverage, under.rate * per_rate
        self._residual, self._slope = under.residual, slope
        self._near_cut = np.zeros(slope.shape, dtype=bool)
        self._apply_cut()
        wide = _log_of_products(under.deviation)
        if self._near_cut.any():
            wide -= np.where(self._near_cut, np.log(under.deviation), 0.0).sum(axis=1)
        self._deviation = under.deviation
        alone = np.einsum("nc,nc->n", self._residual, self._residual) + 2 * wide
        self.square = alone[:, None] - 2 * (self._residual * self._slope) @ block.apart.T
        self.square += self._slope**2 @ (block.apart**2).T
        self.onto = [
            np.einsum("nc,nc->n", along, self._residual)[:, None] - (along * self._slope) @ block.apart.T
            for along in self._directions
        ]
        self._add_near_cut()
        self._add_odd()

    def _apply_cut(self) -> None:
        """Set residuals beyond the cut in every run to the cut; set those beyond it in some runs to 0, for `_add_near_cut`."""
        lowest, highest = self._block.apart.min(axis=0), self._block.apart.max(axis=0)
        rows, channels = np.nonzero(np.abs(self._residual) + self._slope * np.maximum(highest, -lowest) > CLIP)
        residual, slope = self._residual[rows, channels], self._slope[rows, channels]
        most, least = residual - slope * lowest[channels], residual - slope * highest[channels]
        below, above = most <= -CLIP, least >= CLIP
        near_cut = ((least < -CLIP) & ~below) | ((most > CLIP) & ~above)
        self._near_cut[rows, channels] = near_cut
        self._residual[rows, channels] = np.select([below, above, near_cut], [-CLIP, CLIP, 0.0], residual)
        self._slope[rows, channels] = np.where(below | above | near_cut, 0.0, slope)

    def _add_near_cut(self) -> None:
        """Add the exact terms of channels that are beyond the cut in some runs."""
        rows, channels = np.nonzero(self._near_cut)
        at_once = max(1, _ELEMENTS // len(self._block.gains))
        for start in range(0, len(rows), at_once):
            row, channel = rows[start : start + at_once], channels[start : start + at_once]
            one = Observation(*(of[row, channel][:, None] for of in vars(self._observed).values()))
            under = one.under(self._block.gains.T[channel], self._conditions.rows(row))
            noise = clipped(under)
            first = np.flatnonzero(np.diff(row, prepend=-1))
            self.square[row[first]] += np.add.reduceat(noise**2 + 2 * np.log(under.deviation), first, axis=0)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[row[first]] += np.add.reduceat(noise * along[row, channel][:, None], first, axis=0)

    def _add_odd(self) -> None:
        """Replace the terms of odd gains, entered as usual ones, by their exact terms."""
        runs, channels = self._block.odd
        at_once = max(1, _ELEMENTS // len(self._near_cut))
        for start in range(0, len(runs), at_once):
            run, channel = runs[start : start + at_once], channels[start : start + at_once]
            under = self._observed.of(channel).under(self._block.gains[run, channel], self._conditions)
            noise = clipped(under)
            as_usual = self._residual[:, channel]
            # Channels near the cut have their exact terms already.
            exact = self._near_cut[:, channel]
            first = np.flatnonzero(np.diff(run, prepend=-1))
            surprise = noise**2 - as_usual**2 + 2 * np.log(under.deviation / self._deviation[:, channel])
            self.square[:, run[first]] += np.add.reduceat(np.where(exact, 0.0, surprise), first, axis=1)
            more = np.where(exact, 0.0, noise - as_usual)
            for onto, along in zip(self.onto, self._directions, strict=True):
                onto[:, run[first]] += np.add.reduceat(more * along[:, channel], first, axis=1)

    def scores(self, boxes: ReadoutBoxes) -> np.ndarray:
        """Log-densities, (n, runs), with common modes, events and pileup integrated out.

        The covariance of a box's channels is 1 + σ² h h', with h their derivatives by log(rate). Its inverse is 1 - h v h',
        v = 1 / (1/σ² + h'h) (Woodbury). Events and pileup then have flat priors.
        """
        score = -0.5 * self.square
        inner = inner_products(self._directions)
        with_modes = np.asarray(self._block.variances.any(axis=1))
        score[:, ~with_modes] += integrated_out([along[:, ~with_modes] for along in self.onto], inner)
        if not with_modes.any():
            return score
        inner = {ij: np.tile(of_all, with_modes.size) for ij, of_all in inner.items()}
        for box, cells in enumerate(boxes.cells):
            if self._block.variances[:, box].any():
                score += self._integrate_mode(box, cells, inner)
        inner = {ij: of[:, with_modes] for ij, of in inner.items()}
        score[:, with_modes] += integrated_out([along[:, with_modes] for along in self.onto], inner)
        return score

    def _integrate_mode(self, box: int, cells: np.ndarray, inner: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        """Change of the log-densities by the common mode of a box, (n, runs); removes the mode from `onto` and `inner`."""
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
        """Inner products of a box's exact residuals in some runs with a direction (n, cells): (n, len(runs))."""
        observed, gains = self._observed.of(cells), self._block.gains[np.ix_(runs, cells)]
        beside, conditions = observed.rows((slice(None), None)), self._conditions.rows((slice(None), None))
        onto = np.empty((len(direction), len(runs)))
        at_once = max(1, _ELEMENTS // direction.size)
        for start in range(0, len(runs), at_once):
            part = slice(start, start + at_once)
            onto[:, part] = np.einsum("nrc,nc->nr", clipped(beside.under(gains[part], conditions)), direction)
        return onto


def _log_of_products(values: np.ndarray) -> np.ndarray:
    """Sum of logarithms of each row, from products of 6 values: a logarithm takes ten times as long as a product."""
    return np.asarray(np.log(np.multiply.reduceat(values, np.arange(0, values.shape[1], 6), axis=1)).sum(axis=1))
