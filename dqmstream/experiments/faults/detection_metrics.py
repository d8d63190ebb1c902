"""Metrics of a fault detector: false-positive rate at a capture, AUC, delays, and agreement of the channels named.

Capture (the share of faulty data above a threshold) and AUC refer to a whole stream. To resample runs, scores are counted per
run in bins between levels. The levels are scores of faulty data: at a level the counts are exact, and a capture is reached at
the next level below it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

CAPTURES = (0.9, 0.95, 0.99)

PREVALENCES = (0.3, 0.01)
"""Shares of faulty lumisections at which a precision is stated: that of the public protocol of DepthViT (arXiv:2603.02369; 30 %
of the time windows have an anomaly), and one of each hundred."""

LEVELS = np.unique(np.concatenate([np.linspace(0, 0.12, 61), np.linspace(0.12, 1, 45)]))
"""Quantiles of the faulty scores that are levels, denser in the region of the captures."""

DEEPEST = 4096
"""Number of scores of past good data that are kept for a threshold, the highest ones."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of scores in bins: below the first level, at it, between it and the second, at the second, and so on.

    faulty, good: int, (runs, 2 levels + 1).
    """

    faulty: np.ndarray
    good: np.ndarray

    @classmethod
    def of(cls, faulty: Sequence[np.ndarray], good: Sequence[np.ndarray]) -> Tally:
        """Counts from the scores of each run."""
        every = np.concatenate([np.zeros(0), *faulty])
        if not every.size:
            return cls(np.zeros((len(faulty), 1), dtype=np.int64), np.array([[len(scores)] for scores in good]).reshape(-1, 1))
        levels = np.unique(every)
        if len(levels) > len(LEVELS):
            levels = np.unique(np.quantile(every, LEVELS, method="lower"))
        return cls(*(np.stack([_binned(scores, levels) for scores in side]) for side in (faulty, good)))

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """False-positive rate at each of `CAPTURES`, AUC, then `precision` at each capture for each of `PREVALENCES`.

        (draws, 10), nan without faulty or good scores. weights: how often each run counts, (draws, runs). The threshold at a
        capture c is the highest level that a share c of the faulty scores reaches; the rate is the share of good scores that
        reach it. AUC: Mann-Whitney, ties count half.
        """
        faulty, good = weights @ self.faulty, weights @ self.good
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = faulty[:, ::-1].cumsum(axis=1)[:, ::-1] / faulty.sum(axis=1, keepdims=True)
            passed = good[:, ::-1].cumsum(axis=1)[:, ::-1] / good.sum(axis=1, keepdims=True)
            above = reached - 0.5 * faulty / faulty.sum(axis=1, keepdims=True)
            auc = (good * above).sum(axis=1) / good.sum(axis=1)
        rates, precisions = [], []
        for capture in CAPTURES:
            level = (reached >= capture - 1e-9).sum(axis=1) - 1  # `reached` falls from 1 at the lowest level
            at = np.maximum(level, 0)[:, None]
            rate = np.take_along_axis(passed, at, axis=1)[:, 0]
            caught = np.take_along_axis(reached, at, axis=1)[:, 0]
            rates.append(np.where(level < 0, np.nan, rate))
            precisions += [np.where(level < 0, np.nan, precision(caught, rate, share)) for share in PREVALENCES]
        return np.stack([*rates, auc, *precisions], axis=1)


def precision(capture: np.ndarray, false_positives: np.ndarray, prevalence: float) -> np.ndarray:
    """Share of the flagged lumisections that are faulty, where a share `prevalence` of all is: nan where none is flagged.

    capture, false_positives: shares of the faulty and of the good ones that are flagged.
    """
    right, wrong = prevalence * capture, (1 - prevalence) * false_positives
    return np.divide(right, right + wrong, out=np.full(np.shape(right), np.nan), where=right + wrong > 0)


def _binned(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    bins = np.searchsorted(levels, scores, side="left") + np.searchsorted(levels, scores, side="right")
    return np.bincount(bins, minlength=2 * len(levels) + 1)


class HeldOut:
    """Scores of past good data, computed before it was learnt, and the threshold that follows from them."""

    def __init__(self, alarms_per_run: float) -> None:
        self._alarms = alarms_per_run
        self._highest = np.zeros(0)
        self._runs = 0.0

    def add(self, scores: np.ndarray, runs: float) -> None:
        """Add scores. runs: the number of runs that this good data corresponds to."""
        self._highest = np.sort(np.concatenate([self._highest, scores]))[-DEEPEST:]
        self._runs += runs

    @property
    def threshold(self) -> float:
        """The threshold that the allowed number of alarms per run exceeds; infinite before the first scores."""
        allowed = int(self._alarms * self._runs)
        if not len(self._highest):
            return np.inf
        return float(self._highest[max(len(self._highest) - 1 - allowed, 0)])


@dataclass
class Delays:
    """When faults were first flagged. Only lumisections in which a fault acts alone count as finding it."""

    onset: dict[Hashable, tuple[int, str, int]] = field(default_factory=dict)
    found: dict[Hashable, int] = field(default_factory=dict)
    _looked: set[Hashable] = field(default_factory=set)

    def add(
        self, fault: Hashable, run: int, kind: str, first: int, acts: np.ndarray, alone: np.ndarray, flagged: np.ndarray
    ) -> None:
        """Add a run of a fault.

        first: number of the run's first lumisection in the stream. acts, alone, flagged: bool (n,), whether the fault acts,
        whether it acts and no other does, whether the lumisection was flagged.
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
        """Run of the onset, kind, lumisections from onset to first flag (None: never), of each fault that acts alone once."""
        return [(run, kind, self.found.get(fault)) for fault, (run, kind, _) in self.onset.items() if fault in self._looked]


def agreement(named: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union, recall and precision of the named channels, and whether any was named: (n, 4).

    named, true: bool (n, channels); every lumisection has a true channel. Precision is 0 where nothing was named.
    """
    both, either = (named & true).sum(axis=1), (named | true).sum(axis=1)
    some = named.any(axis=1)
    precision = np.divide(both, named.sum(axis=1), out=np.zeros(len(both)), where=some)
    return np.stack([both / either, both / true.sum(axis=1), precision, some], axis=1)
