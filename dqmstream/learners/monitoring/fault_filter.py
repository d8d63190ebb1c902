"""How probable a fault is now, from all lumisections of a run so far: a hidden Markov chain for each thing that can fail.

Things that fail: a channel, a readout module, a readout box (`Groups`). Each is good or in one of a few states of failure s,
which begins in a lumisection with probability b_s and ends with probability e_s. With L_s the likelihood of the lumisection's
counts over that of a good one, the odds o_s of the states against good follow (forward algorithm: Rabiner, Proc. IEEE 77
(1989) 257, eq. 19-21)

    o_s <- L_s ((1 - e_s) o_s + b_s) / (1 - Σ b + Σ e_s o_s)

so that a dead channel stands out at once, and a small loss as soon as its lumisections add up to it. The things are taken as
independent: the odds that any has failed are Π (1 + Σ o_s) - 1, and those of a channel are over the things that hold it.

A channel may have a fault of its own in a group that is good or that has failed. Both are then the same mixture of what the
group says and of what the channel's own fault says, or else one dead channel would look as if its whole box had lost a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from dqmstream.lumisection import IETA, IPHI, readout_box

OWN = 1e-3
"""Share of the channels of a group that have a fault of their own."""

LARGEST = 60.0
"""Log of the largest factor that one lumisection can have on odds: beyond it they are certain, and would overflow."""


@dataclass(frozen=True)
class Rates:
    """begins, ends: probability of each state in a lumisection, (S,)."""

    begins: tuple[float, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Groups:
    """Which live channels fail together: bool, (modules, live) and (boxes, live)."""

    modules: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, live: np.ndarray) -> Groups:
        """live: bool, (depth, 64, 72). A module has alternating cells in two neighbouring iphi of one side."""
        _, row, column = np.nonzero(live)
        side, pair, parity = np.sign(IETA[row]), column // 2, (row + column) % 2
        module = side * (1 + 2 * pair + parity)
        box = readout_box(IETA[row], IPHI[column])
        return cls(*(np.unique(group)[:, None] == group for group in (module, box)))


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Log-likelihoods of n lumisections' counts, up to what all share, float64.

    good: (n, live). alone: of each state of a channel, (n, live, S). module, box: of each state of a group, (n, live, M) and
    (n, live, B).
    """

    good: np.ndarray
    alone: np.ndarray
    module: np.ndarray
    box: np.ndarray


@dataclass(frozen=True, eq=False)
class Suspicion:
    """Log-odds that a lumisection has a fault, (n,), and that each channel has, (n, live)."""

    score: np.ndarray
    channels: np.ndarray


class FaultFilter:
    """The chains of one run; lumisections come in order, in as many calls as it takes."""

    def __init__(self, groups: Groups, alone: Rates, module: Rates, box: Rates) -> None:
        channels = groups.boxes.shape[1]
        self._members = [groups.modules.astype(np.float64), groups.boxes.astype(np.float64)]
        self._chains = [
            _Chain(channels, alone),
            *(_Chain(len(m), r) for m, r in zip(self._members, (module, box), strict=True)),
        ]
        self._own = np.log(np.array(alone.begins) / sum(alone.begins))

    def step(self, told: Likelihoods) -> Suspicion:
        """The next lumisections."""
        own = np.log(OWN) + logsumexp(told.alone + self._own, axis=2)
        usual = np.logaddexp(np.log1p(-OWN) + told.good, own)
        surprise = [self._chains[0].step(told.alone - told.good[..., None])]
        channels = surprise[0].copy()
        for chain, member, states in zip(self._chains[1:], self._members, (told.module, told.box), strict=True):
            apart = np.logaddexp(np.log1p(-OWN) + states, own[..., None]) - usual[..., None]
            surprise.append(chain.step(np.einsum("ncs,gc->ngs", apart, member, optimize=True)))
            channels += surprise[-1] @ member
        return Suspicion(_log_odds(np.concatenate(surprise, axis=1).sum(axis=1)), _log_odds(channels))


class _Chain:
    """Odds of the states of several things of a kind, (things, S); before the first lumisection those of a long time."""

    def __init__(self, things: int, rates: Rates) -> None:
        self._begins, self._ends = np.array(rates.begins), np.array(rates.ends)
        self._odds = np.tile(self._begins / self._ends, (things, 1))

    def step(self, log_ratio: np.ndarray) -> np.ndarray:
        """log_ratio: (n, things, S). Returns -log of the probability that a thing is good, (n, things)."""
        ratio = np.exp(np.clip(log_ratio, -LARGEST, LARGEST))
        surprise = np.empty(ratio.shape[:2])
        stays, good = 1 - self._ends, 1 - self._begins.sum()
        odds = self._odds
        for i, of_lumisection in enumerate(ratio):
            odds = of_lumisection * ((odds * stays + self._begins) / (good + odds @ self._ends)[:, None])
            surprise[i] = odds.sum(axis=1)
        self._odds = odds
        return np.log1p(surprise)


def _log_odds(surprise: np.ndarray) -> np.ndarray:
    """log(exp(x) - 1), the log-odds of a probability exp(-x) to be good."""
    return np.asarray(surprise + np.log(-np.expm1(-np.maximum(surprise, 1e-300))))
