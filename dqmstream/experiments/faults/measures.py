"""What a detector's scores come to: false positives at a capture, AUC, delays, and whether the right channels were named.

Captures and AUC are of a stream as a whole. So that runs can be resampled scores are counted run by run in bins between levels,
which are scores of faulty data themselves: at a level the counts are exact, and a capture is met at the next level below it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

CAPTURES = (0.9, 0.95, 0.99)

LEVELS = np.unique(np.concatenate([np.linspace(0, 0.12, 61), np.linspace(0.12, 1, 45)]))
"""Quantiles of faulty scores that are levels, denser where captures are read off."""

DEEPEST = 4096
"""Scores of past good data that are kept for a threshold, the highest."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts in bins of rising scores: below the first level, at it, between it and the next, and so on.

    faulty, good: int, (runs, 2 levels + 1).
    """

    faulty: np.ndarray
    good: np.ndarray

    @classmethod
    def of(cls, faulty: Sequence[np.ndarray], good: Sequence[np.ndarray]) -> Tally:
        """By the scores of each run."""
        every = np.concatenate([np.zeros(0), *faulty])
        if not every.size:
            return cls(np.zeros((len(faulty), 1), dtype=np.int64), np.array([[len(scores)] for scores in good]).reshape(-1, 1))
        levels = np.unique(every)
        if len(levels) > len(LEVELS):
            levels = np.unique(np.quantile(every, LEVELS, method="lower"))
        return cls(*(np.stack([_binned(scores, levels) for scores in side]) for side in (faulty, good)))

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """False-positive rate at each of `CAPTURES`, then AUC; nan without faulty or good scores: (draws, 4).

        weights: how often each run counts, (draws, runs). The threshold at a capture c is the highest level that a share c of
        the faulty scores reaches; the rate is the share of good ones that reach it too. AUC: Mann and Whitney, ties half.
        """
        faulty, good = weights @ self.faulty, weights @ self.good
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = faulty[:, ::-1].cumsum(axis=1)[:, ::-1] / faulty.sum(axis=1, keepdims=True)
            passed = good[:, ::-1].cumsum(axis=1)[:, ::-1] / good.sum(axis=1, keepdims=True)
            above = reached - 0.5 * faulty / faulty.sum(axis=1, keepdims=True)
            auc = (good * above).sum(axis=1) / good.sum(axis=1)
        found = []
        for capture in CAPTURES:
            level = (reached >= capture - 1e-9).sum(axis=1) - 1  # falls from 1 at the lowest
            rate = np.take_along_axis(passed, np.maximum(level, 0)[:, None], axis=1)[:, 0]
            found.append(np.where(level < 0, np.nan, rate))
        return np.stack([*found, auc], axis=1)


def _binned(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    bins = np.searchsorted(levels, scores, side="left") + np.searchsorted(levels, scores, side="right")
    return np.bincount(bins, minlength=2 * len(levels) + 1)


class HeldOut:
    """Scores of past good data, held out in that they were given before the data was learnt; and the threshold they give."""

    def __init__(self, alarms_per_run: float) -> None:
        self._alarms = alarms_per_run
        self._highest = np.zeros(0)
        self._runs = 0.0

    def add(self, scores: np.ndarray, runs: float) -> None:
        """runs: how many runs' worth of good data this is."""
        self._highest = np.sort(np.concatenate([self._highest, scores]))[-DEEPEST:]
        self._runs += runs

    @property
    def threshold(self) -> float:
        """So many alarms a run are above it; infinite before there is any past."""
        allowed = int(self._alarms * self._runs)
        if not len(self._highest):
            return np.inf
        return float(self._highest[max(len(self._highest) - 1 - allowed, 0)])


@dataclass
class Delays:
    """When faults were first flagged, in lumisections that acted alone: a fault flagged beside another was not found by it."""

    onset: dict[Hashable, tuple[int, str, int]] = field(default_factory=dict)
    found: dict[Hashable, int] = field(default_factory=dict)
    _looked: set[Hashable] = field(default_factory=set)

    def add(
        self, fault: Hashable, run: int, kind: str, first: int, acts: np.ndarray, alone: np.ndarray, flagged: np.ndarray
    ) -> None:
        """A run of a fault. first: number of the run's first lumisection in the stream. acts, alone, flagged: bool, (n,).

        alone: the fault acts and no other does.
        """
        if not acts.any():
            return
        self.onset.setdefault(fault, (run, kind, first + int(np.argmax(acts))))
        if alone.any():
            self._looked.add(fault)
        seen = alone & flagged
        if fault not in self.found and seen.any():
            self.found[fault] = first + int(np.argmax(seen)) - self.onset[fault][2]

    def rows(self) -> list[tuple[int, str, int | None]]:
        """Run in which it began, kind, and lumisections from its onset to its first flag (None: never), of each fault that
        acted alone at all."""
        return [(run, kind, self.found.get(fault)) for fault, (run, kind, _) in self.onset.items() if fault in self._looked]


def agreement(named: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union, recall and precision of channels (n, channels), and whether any was named: (n, 4).

    Precision is 0 where nothing was named; every lumisection has a true channel.
    """
    both, either = (named & true).sum(axis=1), (named | true).sum(axis=1)
    some = named.any(axis=1)
    precision = np.divide(both, named.sum(axis=1), out=np.zeros(len(both)), where=some)
    return np.stack([both / either, both / true.sum(axis=1), precision, some], axis=1)
