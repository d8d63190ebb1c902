"""The probability of a fault, from all lumisections of a run so far: a hidden Markov chain for each thing that can fail.

Channels, readout modules and readout boxes can fail (`FailureGroups`). Each is good, or in one of a few states s of failure;
the state begins in a lumisection with probability b_s and ends with probability e_s. L_s is the likelihood of the
lumisection's counts in state s over that of a good thing. The odds o_s of state s against good are updated by

    o_s <- L_s ((1 - e_s) o_s + b_s) / (1 - Σ b + Σ e_s o_s)

(forward algorithm: Rabiner, Proc. IEEE 77 (1989) 257, eq. 19-21). A dead channel stands out at once, a small loss once several
lumisections add up. Things fail independently: the odds that any has failed are Π (1 + Σ o_s) - 1. For a channel, the product
is over the things that contain it.

A channel may have its own fault within a group, good or failed. The likelihoods of both are therefore mixtures with that of a
fault of the channel's own; otherwise one dead channel would look like a small loss of its whole box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from dqmstream.lumisection import IETA, IPHI, readout_box, readout_module

OWN = 1e-3
"""Probability that a channel of a group has a fault of its own."""

LARGEST = 60.0
"""Largest change of log-odds by one lumisection; without a limit, the odds overflow."""


@dataclass(frozen=True)
class Rates:
    """Probabilities that each of S states begins and ends in a lumisection."""

    begins: tuple[float, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FailureGroups:
    """Live channels that fail together: members of each module, bool (modules, live), and of each box, (boxes, live)."""

    modules: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, live: np.ndarray) -> FailureGroups:
        """live: bool, (depth, 64, 72)."""
        _, row, column = np.nonzero(live)
        module = readout_module(IETA[row], IPHI[column])
        box = readout_box(IETA[row], IPHI[column])
        return cls(*(np.unique(group)[:, None] == group for group in (module, box)))


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Log-likelihoods of the counts of n lumisections, up to a constant common to all states: float64.

    good: (n, live). alone: for each state of a single channel, (n, live, S). module, box: for each state of a module or a box,
    (n, live, M) and (n, live, B).
    """

    good: np.ndarray
    alone: np.ndarray
    module: np.ndarray
    box: np.ndarray


@dataclass(frozen=True, eq=False)
class Suspicion:
    """Log-odds that there is a fault in a lumisection, score (n,), and in each channel, channels (n, live)."""

    score: np.ndarray
    channels: np.ndarray


class FaultFilter:
    """The chains of one run; its lumisections are given in order, in any number of calls."""

    def __init__(self, groups: FailureGroups, alone: Rates, module: Rates, box: Rates) -> None:
        channels = groups.boxes.shape[1]
        self._members = [groups.modules.astype(np.float64), groups.boxes.astype(np.float64)]
        self._chains = [
            _Chain(channels, alone),
            *(_Chain(len(m), r) for m, r in zip(self._members, (module, box), strict=True)),
        ]
        self._own = np.log(np.array(alone.begins) / sum(alone.begins))

    def step(self, likelihoods: Likelihoods) -> Suspicion:
        """Update the odds by the next lumisections."""
        own = np.log(OWN) + logsumexp(likelihoods.alone + self._own, axis=2)
        usual = np.logaddexp(np.log1p(-OWN) + likelihoods.good, own)
        surprise = [self._chains[0].step(likelihoods.alone - likelihoods.good[..., None])]
        channels = surprise[0].copy()
        for chain, member, states in zip(self._chains[1:], self._members, (likelihoods.module, likelihoods.box), strict=True):
            apart = np.logaddexp(np.log1p(-OWN) + states, own[..., None]) - usual[..., None]
            surprise.append(chain.step(np.einsum("ncs,gc->ngs", apart, member, optimize=True)))
            channels += surprise[-1] @ member
        return Suspicion(_log_odds(np.concatenate(surprise, axis=1).sum(axis=1)), _log_odds(channels))


class _Chain:
    """Odds of the states of several things of a kind, (things, S); they start from the stationary odds without evidence."""

    def __init__(self, things: int, rates: Rates) -> None:
        self._begins, self._ends = np.array(rates.begins), np.array(rates.ends)
        self._odds = np.tile(self._begins / self._ends, (things, 1))

    def step(self, log_ratio: np.ndarray) -> np.ndarray:
        """log_ratio: log L_s, (n, things, S). Returns -log of the probability that each thing is good, (n, things)."""
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
    """Log-odds of a fault, log(exp(x) - 1), where exp(-x) is the probability that all is good."""
    return np.asarray(surprise + np.log(-np.expm1(-np.maximum(surprise, 1e-300))))
