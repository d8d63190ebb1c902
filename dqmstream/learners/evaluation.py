"""What is learnt and what is forgotten: accuracy and AUC of each run after each experience.

R[t, i] is the share of run i's test lumisections that the learner names right after experience t, among all runs seen at
t. One has to learn two runs before there is anything to tell apart: row 0 is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from scipy.stats import rankdata

from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Maps, RunData, Strategy

Matrix = list[list[float | None]]
"""T rows of T entries; None where nothing is defined (row 0, and i > t)."""


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    Mann and Whitney, Ann. Math. Stat. 18 (1947) 50, by ranks: (sum of the positives' ranks - n(n+1)/2) / (n m).
    """
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def roc_curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates at each threshold, from (0, 0) to (1, 1)."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])[order]
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(truth)[last_of_ties] / len(positive)
    false_positives = np.cumsum(1 - truth)[last_of_ties] / len(negative)
    return np.append(0.0, false_positives), np.append(0.0, true_positives)


@dataclass(frozen=True)
class Row:
    """Row t of the matrices: one entry for each run seen."""

    accuracy: list[float]
    auc: list[float]


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation said of n lumisections of the T runs seen.

    log_probability: float64, shape (n, T). labels: the class of each, int, shape (n,). lumisection: its number, int64, (n,).
    """

    log_probability: np.ndarray
    labels: np.ndarray
    lumisection: np.ndarray


@dataclass(frozen=True)
class BeforeLearning:
    """What the learner said of a run before it learnt it.

    new_run_auc: AUC of `this lumisection is of no run I know` (1 - largest probability), the new run's test lumisections
    against those of the known runs. nearest_run: the known run that it took them for, with the mean probability.
    """

    new_run_auc: float
    nearest_run: int
    nearest_probability: float


class Evaluator:
    """Judges strategies on the test lumisections of every run seen, within a fixed budget for the whole stream.

    budget: lumisections scored at an evaluation, over all runs. When the runs have more, each keeps
    budget // runs of its own, drawn by its number, and what is kept later is a part of what was kept before.
    """

    def __init__(self, budget: int = 6000) -> None:
        self.budget = budget
        self.runs: list[int] = []
        self._tests: list[Maps] = []

    def add(self, run: RunData) -> None:
        """Add the next experience's test part."""
        self.runs.append(run.run)
        self._tests.append(run.part(Part.TEST))
        share = max(1, self.budget // len(self.runs))
        self._tests = [_first_of(maps, share, number) for maps, number in zip(self._tests, self.runs, strict=True)]

    def score(self, strategy: Strategy) -> Scores:
        """What the strategy says of the test lumisections that are kept of the runs added so far."""
        blocks = [log_softmax(strategy.scores(maps), axis=1) for maps in self._tests]
        labels = np.concatenate([np.full(len(maps), i) for i, maps in enumerate(self._tests)])
        return Scores(np.concatenate(blocks), labels, np.concatenate([maps.lumisection for maps in self._tests]))

    def before(self, strategy: Strategy, run: RunData) -> BeforeLearning:
        """Judge a run that the strategy has not learnt; it must know two runs at least."""
        new = log_softmax(strategy.scores(run.part(Part.TEST)), axis=1)
        known = self.score(strategy).log_probability
        mean = np.exp(new).mean(axis=0)
        nearest = int(mean.argmax())
        return BeforeLearning(auc(-new.max(axis=1), -known.max(axis=1)), self.runs[nearest], float(mean[nearest]))


def evaluate_row(scores: Scores) -> Row:
    """Accuracy and AUC of each run.

    accuracy[i]: share of run i's lumisections whose largest probability is run i's. auc[i]: run i's probability, run i's
    lumisections against those of all other runs.
    """
    log_probability, labels = scores.log_probability, scores.labels
    named = log_probability.argmax(axis=1)
    accuracies, aucs = [], []
    for i in range(log_probability.shape[1]):
        mine = labels == i
        accuracies.append(float(np.mean(named[mine] == i)))
        aucs.append(auc(log_probability[mine, i], log_probability[~mine, i]))
    return Row(accuracies, aucs)


def matrix(rows: Sequence[Sequence[float] | None]) -> Matrix:
    """A T x T matrix from its rows; row t has t + 1 entries, or None."""
    size = len(rows)
    full: Matrix = []
    for row in rows:
        known = [] if row is None else list(row)
        full.append([*known, *[None] * (size - len(known))])
    return full


def average(values: Matrix) -> float | None:
    """Mean of the last row: 1/T sum_i R[T-1, i] (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 2). None before row 1."""
    last = [value for value in values[-1] if value is not None] if values else []
    return float(np.mean(last)) if last else None


def forgetting(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of (max over t < T-1 of R[t, i]) - R[T-1, i] (Chaudhry et al., ECCV 2018, eq. 3).

    None before three runs: nothing was known before the last row.
    """
    return _mean_drop(values, max)


def forgetting_initial(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of R[first, i] - R[T-1, i], where first is the row in which run i was learnt.

    This is minus the backward transfer of Lopez-Paz and Ranzato (NeurIPS 2017, eq. 3). None before three runs.
    """
    return _mean_drop(values, lambda before: before[0])


def _mean_drop(values: Matrix, reference: Callable[[list[float]], float]) -> float | None:
    drops = []
    for i in range(len(values) - 1):
        before = [value for row in values[:-1] if (value := row[i]) is not None]
        last = values[-1][i]
        if before and last is not None:
            drops.append(reference(before) - last)
    return float(np.mean(drops)) if drops else None


def _first_of(maps: Maps, share: int, run: int) -> Maps:
    if len(maps) <= share:
        return maps
    keep = np.random.default_rng(run).permutation(len(maps))[:share]
    return maps.take(np.sort(keep))
