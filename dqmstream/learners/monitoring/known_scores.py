"""The scores that held-out lumisections of known runs have, and the p-value of another score among them.

After a run was learnt, blocks of its lumisections that were not used for learning are scored. Neighbouring windows share
lumisections, so a block counts once, whatever its length: three quarters of its weight lie at the upper quartile of its scores,
the rest at higher quantiles. The probability p that a known run scores as high as s is estimated in two ways, and the larger
value is used:

* the weight of the blocks that score as high, and
* above the score u that k blocks exceed, by y_1 ... y_k, an exponential tail of unknown scale:

      p(s) = p(u) (1 + (s - u) / (c + Σ y))^-(k + c)

For c = 0 this is the exact predictive probability of an exponential excess, given k others (Aitchison and Dunsmore, Statistical
Prediction Analysis, 1975, ch. 2): the fewer blocks, the heavier the tail. c prior excesses of 1 nat stand for the tail of a log
Bayes factor, which falls as exp(-s) in a known run if the densities are right. Where the excesses scatter more than exponential
ones do, as where a box trips in few blocks, the same is done with log(1 + y / median).

Older runs have less weight, so that a detector that changes is not judged by old scores. The number of independent blocks is
smaller by these weights and by the spread between runs, and limits the p-values that can be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from dqmstream.errors import StateError

QUANTILES, SHARES = (0.75, 0.9, 1.0), (0.75, 0.15, 0.1)
"""Quantiles of a block's scores that stand for the block, and the share of its weight that each has."""

FADING = 0.98
"""Weight of a run relative to the next one: half after 34 runs."""

MOST_BLOCKS = 400
"""Blocks that are kept, the newest ones."""

IN_TAIL = 10
"""Most blocks that the tail is fitted to, k."""

PRIOR = 3.0
"""Prior excesses of 1 nat, c."""

HEAVY = 1.25
"""Standard deviation of the excesses over their mean from which the tail is heavier than exponential."""

LEAST_BLOCKS = 6.0
"""Independent blocks without which no p-value is given."""

EXTRAPOLATED = 16.0
"""The smallest p-value that n independent blocks give is 1 / (16 n)."""


def needed_blocks(rate: float) -> float:
    """Number of independent blocks that a rate of false alarms needs."""
    return max(LEAST_BLOCKS, 1 / (EXTRAPOLATED * rate))


class KnownScores:
    """Scores of held-out blocks of the newest known runs.

    lengths: fewest lumisections behind a score of each class; a score is judged among those of its class. blocks: quantiles of
    the scores of each class, nan where a block has none, float32, (B, classes, 3). run: number of the experience of each block,
    ascending, int64, (B,).
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.blocks = np.zeros((0, len(lengths), len(QUANTILES)), dtype=np.float32)
        self.run = np.zeros(0, dtype=np.int64)

    def add(self, experience: int, scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Add the blocks of a run: the scores of the lumisections of each and the lengths behind them, (n,), without nan."""
        rows = np.array([self._summary(*one) for one in scored], dtype=np.float32).reshape(-1, *self.blocks.shape[1:])
        rows = rows[np.isfinite(rows).any(axis=(1, 2))]
        self.blocks = np.concatenate([self.blocks, rows])[-MOST_BLOCKS:]
        self.run = np.concatenate([self.run, np.full(len(rows), experience)])[-MOST_BLOCKS:]

    def p(self, score: np.ndarray, length: np.ndarray, rate: float, left_out: float = np.inf) -> np.ndarray:
        """Probability that a lumisection of a known run scores as high, (n,); nan where there are too few blocks for a rate.

        length: number of lumisections behind each score, (n,). rate: smallest p-value that is needed. left_out: blocks that
        reach this score are not used.
        """
        found, of = np.full(len(score), np.nan), np.searchsorted(self.lengths, length, side="right") - 1
        for number in np.unique(of[of >= 0]):
            known = self._distribution(number, left_out)
            if known.least <= rate:
                found[of == number] = known.p(score[of == number])
        return found

    def least(self) -> float:
        """Smallest p-value that can be given at the largest length; infinite where there are too few blocks."""
        return self._distribution(self._longest, np.inf).least

    def independent(self) -> float:
        """Number of independent blocks of the largest length."""
        return self._distribution(self._longest, np.inf).count

    @property
    def _longest(self) -> int:
        """Class of the largest length that any block has."""
        return int(np.flatnonzero(np.isfinite(self.blocks[:, :, 0]).any(axis=0)).max(initial=0))

    def share(self, score: float) -> float:
        """Share of blocks, with their weights, that reach a score at any length; 0 without blocks."""
        if not len(self.run):
            return 0.0
        return float(np.average(self._highest() >= score, weights=_weights(self.run)))

    def _distribution(self, number: int, left_out: float) -> _Distribution:
        of_class = self.blocks[:, number].astype(np.float64)
        used = np.isfinite(of_class[:, 0]) & (self._highest() < left_out)
        return _Distribution(of_class[used], self.run[used])

    def _highest(self) -> np.ndarray:
        """Highest score of each block, (B,)."""
        return np.asarray(np.where(np.isnan(self.blocks), -np.inf, self.blocks).max(axis=(1, 2), initial=-np.inf))

    def _summary(self, score: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Quantiles of a block's scores in each class, (classes, 3)."""
        row, of = np.full(self.blocks.shape[1:], np.nan), np.searchsorted(self.lengths, length, side="right") - 1
        for number in range(len(row)):
            scores = score[(of == number) & np.isfinite(score)]
            if len(scores):
                row[number] = np.quantile(scores, QUANTILES)
        return row

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return {"blocks": self.blocks.copy(), "run": self.run.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave; to no blocks from an empty one. Raises StateError if it is damaged."""
        shape = len(self.lengths), len(QUANTILES)
        blocks = np.array(state.get("blocks", np.zeros((0, *shape))), dtype=np.float32)
        run = np.array(state.get("run", np.zeros(0)), dtype=np.int64)
        if len(state) not in (0, 2) or blocks.shape != (len(run), *shape):
            raise StateError("the state lacks scores of known runs; it is damaged or of another version")
        self.blocks, self.run = blocks, run


class _Distribution:
    """Distribution of the scores of blocks, from their quantiles, (B, 3), and the experience of each, (B,)."""

    def __init__(self, scores: np.ndarray, run: np.ndarray) -> None:
        self.count = _independent(scores[:, 0], run)
        weight = np.outer(_weights(run), SHARES).ravel()
        order = np.argsort(scores, axis=None, kind="stable")
        self._scores = scores.ravel()[order]
        weight = weight[order] * (self.count / max(weight.sum(), 1e-300))
        # Weight at this place and above, in independent blocks.
        self._above = np.append(np.cumsum(weight[::-1])[::-1], 0.0)
        self._weight = weight

    @property
    def least(self) -> float:
        return 1 / (EXTRAPOLATED * self.count) if self.count >= LEAST_BLOCKS else np.inf

    def p(self, score: np.ndarray) -> np.ndarray:
        reach = self._above[np.searchsorted(self._scores, score, side="left")]
        start = max(int(np.argmax(self._above <= min(IN_TAIL, self.count / 2))) - 1, 0)
        low, above = self._scores[start], self._above[start + 1]
        excess, weight = self._scores[start + 1 :] - low, self._weight[start + 1 :]
        beyond, prior = np.maximum(score - low, 0.0), PRIOR
        mean = float(weight @ excess) / above
        if float(weight @ excess**2) / above > (1 + HEAVY**2) * mean**2:
            middle = max(float(np.median(excess)), 1.0)
            excess, beyond, prior = np.log1p(excess / middle), np.log1p(beyond / middle), PRIOR * np.log(2)
        tail = (above + 1) / (self.count + 1) * (1 + beyond / (prior + float(weight @ excess))) ** -(above + PRIOR)
        found = np.where(score > low, np.maximum(tail, reach / (self.count + 1)), (reach + 1) / (self.count + 1))
        return np.asarray(np.clip(found, self.least, 1.0))


def _weights(run: np.ndarray) -> np.ndarray:
    return np.asarray(FADING ** (run.max(initial=0) - run).astype(np.float64))


def _independent(scores: np.ndarray, run: np.ndarray) -> float:
    """Number of independent blocks: (Σ w)² / Σ w² (Kish), divided by 1 + (m - 1) ρ.

    m: blocks a run. ρ: correlation of blocks of one run, by a one-way analysis of variance of the normal scores of their ranks
    (Donner, Int. Stat. Rev. 54 (1986) 67). 0 without blocks.
    """
    runs, of, size = np.unique(run, return_inverse=True, return_counts=True)
    if not len(run):
        return 0.0
    weight = _weights(run)
    count, groups = len(run), len(runs)
    independent = float(weight.sum() ** 2 / (weight**2).sum())
    each = (count - (size**2).sum() / count) / max(groups - 1, 1)
    if count == groups or groups < 2:
        return independent if groups > 1 else 1.0
    normal = ndtri(rankdata(scores) / (count + 1))
    mean = np.bincount(of, weights=normal) / size
    between = float(size @ (mean - normal.mean()) ** 2) / (groups - 1)
    inside = float(((normal - mean[of]) ** 2).sum()) / (count - groups)
    correlation = max(between - inside, 0.0) / max(between + (each - 1) * inside, 1e-12)
    return independent / (1 + (each - 1) * min(correlation, 1.0))
