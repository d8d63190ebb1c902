"""The evaluator: what a strategy says of the lumisections that are kept for judging it, and a row of each matrix from that.

Row t of a matrix belongs to the moment right after experience t, and has an entry for each run seen by then. One has to learn
two runs before there is anything to tell apart: row 0 is empty. What the matrices say of a stream is in
`learners.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.special import log_softmax
from scipy.stats import rankdata

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.history_line import BeforeLearning
from dqmstream.learners.maps import Maps, RunData, joined
from dqmstream.learners.memory.map_codec import packed, unpacked
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Strategy

VALIDATION_SHARE = 3
"""One validation lumisection is kept for so many test ones, as the split has them (`learners.splits`)."""

NOTICED = 32
"""Known runs, from the first to the newest, against which a new one is to be noticed: each is looked at by itself."""

_NEVER = -1e6
"""Log-probability of a class that is not asked any more, since its run was learnt once more."""

BATCH = 256
"""Lumisections that are joined at least for a call of `scores`, where there are as many."""


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    Mann and Whitney, Ann. Math. Stat. 18 (1947) 50, by ranks: (sum of the positives' ranks - n(n+1)/2) / (n m).
    """
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def one_against_rest(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """AUC by the second class's log-odds where there are two; the mean over classes, each against the rest, where more."""
    classes = log_probability.shape[1]
    if classes == 2:
        odds = log_probability[:, 1] - log_probability[:, 0]
        return auc(odds[labels == 1], odds[labels == 0])
    return float(np.mean([auc(log_probability[labels == k, k], log_probability[labels != k, k]) for k in range(classes)]))


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
class MatrixRow:
    """Row t of the matrices: one entry for each run seen."""

    accuracy: list[float]
    auc: list[float]
    auc_fixed: list[float]


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation said of n lumisections of the T runs seen.

    log_probability: float64, shape (n, T). labels: the class of each, int, shape (n,). lumisection: its number, int64, (n,).
    """

    log_probability: np.ndarray
    labels: np.ndarray
    lumisection: np.ndarray


def newest_of_run(runs: Sequence[int]) -> np.ndarray:
    """Of each experience, the last one of its run, (T,): itself where no run was learnt twice."""
    last = {run: i for i, run in enumerate(runs)}
    return np.array([last[run] for run in runs], dtype=np.int64)


def by_run(log_probability: np.ndarray, runs: Sequence[int]) -> np.ndarray:
    """Log-probabilities (n, T) where a run may have been learnt twice: its last column has that of all its classes."""
    newest = newest_of_run(runs)
    twice = np.flatnonzero(newest != np.arange(len(newest)))
    if not len(twice):
        return log_probability
    out = log_probability.copy()
    for i in twice:
        out[:, newest[i]], out[:, i] = np.logaddexp(out[:, newest[i]], out[:, i]), _NEVER
    return out


class Scorer(Protocol):
    """What can be judged: a strategy, or a bound that knows the truth and learns nothing."""

    def scores(self, maps: Maps) -> np.ndarray:
        """As `Strategy.scores`."""
        ...


class Evaluator:
    """Judges strategies on lumisections of every run seen, within a fixed budget for the whole stream.

    budget: test lumisections scored at an evaluation, over all runs; a third as many validation lumisections are scored
    beside them, for the temperature alone. When the runs have more, each keeps budget // runs of its own, drawn by its
    number, and what is kept later is a part of what was kept before. So an evaluation costs the same at run 1000 as at the run
    that filled the budget, and the accuracy of a single run gets coarse: of 6000 lumisections each of 1000 runs keeps 6, its
    accuracy is a multiple of 1/6 and uncertain by up to .2, and an entry of R tells little. The average over runs stays as
    certain as 6000 lumisections make it (.006). As a run keeps fewer its column moves by chance, and figures that take a
    maximum or a minimum over t (`forgetting`, the worst case) are the larger, or lower, for it.

    Beyond `budget` runs each keeps one test lumisection, and the cost grows again. Where there are more runs than validation
    lumisections may be scored they are kept of every second run only, every fourth, and so on.
    """

    def __init__(self, budget: int = 6000) -> None:
        self.budget = budget
        self.runs: list[int] = []
        self._tests: list[Maps] = []
        self._validations: list[Maps] = []
        self._surest: dict[int, tuple[Scorer, np.ndarray]] = {}
        """Largest log-probability of each test lumisection, (n,), and who said it since the last run was added, by its `id`."""

    def add(self, run: RunData) -> None:
        """Add the next experience's test and validation parts, in place of those of the same run where it was learnt before."""
        for i in self.earlier(run.run):
            self._tests[i], self._validations[i] = (_first_of(maps[i], 0, 0) for maps in (self._tests, self._validations))
        self.runs.append(run.run)
        self._surest.clear()
        self._tests = self._within(self.budget, [*self._tests, run.part(Part.TEST)])
        budget = max(1, self.budget // VALIDATION_SHARE)
        # A power of two, so that what is kept later is a part of what was kept before.
        every = 1 << (-(-len(self.runs) // budget) - 1).bit_length()
        kept = self._within(budget, [*self._validations, run.part(Part.VALIDATION)])
        self._validations = [maps if number % every == 0 else _first_of(maps, 0, 0) for number, maps in enumerate(kept)]

    def earlier(self, run: int) -> list[int]:
        """Experiences by which a run was learnt so far: none for a new one."""
        return [i for i, known in enumerate(self.runs) if known == run]

    def newest(self) -> np.ndarray:
        """`newest_of_run` of the experiences so far."""
        return newest_of_run(self.runs)

    def _score(self, strategy: Scorer, parts: list[Maps]) -> Scores:
        scores = _score(strategy, parts)
        return replace(scores, log_probability=by_run(scores.log_probability, self.runs))

    def state(self) -> dict[str, np.ndarray]:
        """All that is kept of the runs, as named arrays."""
        kept = prefixed("test", packed(self._tests)) | prefixed("validation", packed(self._validations))
        return kept | {"runs": np.array(self.runs, dtype=np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        tests, validations = unpacked(within(state, "test")), unpacked(within(state, "validation"))
        if "runs" not in state or not len(state["runs"]) == len(tests) == len(validations):
            raise StateError("the state lacks lumisections that are kept for judging; it is damaged")
        self.runs[:] = state["runs"].tolist()
        self._tests, self._validations = tests, validations
        self._surest.clear()

    def _within(self, budget: int, parts: list[Maps]) -> list[Maps]:
        share = max(1, budget // len(self.runs))
        return [_first_of(maps, share, number) for maps, number in zip(parts, self.runs, strict=True)]

    def score(self, strategy: Scorer) -> Scores:
        """What the strategy says of the test lumisections that are kept of the runs added so far."""
        scores = self._score(strategy, self._tests)
        self._surest[id(strategy)] = strategy, scores.log_probability.max(axis=1)
        return scores

    def score_validation(self, strategy: Scorer) -> Scores:
        """The same of the validation lumisections."""
        return self._score(strategy, self._validations)

    def before(self, strategy: Strategy, novelty: Novelty, run: RunData) -> BeforeLearning:
        """Judge a run that neither has learnt, on at most `budget` of its lumisections; they must know two runs.

        What the strategy says of the runs that it knows is what it said when it was last asked by `score`, if it was since the
        last run was added: nothing must have been learnt in between.
        """
        test = _first_of(run.part(Part.TEST), self.budget, run.run)
        new = by_run(log_softmax(strategy.scores(test), axis=1), self.runs)
        if id(strategy) not in self._surest:
            self.score(strategy)
        _, surest = self._surest[id(strategy)]
        mean = np.exp(new).mean(axis=0)
        nearest = int(mean.argmax())
        as_many = _first_of(test, max(1, self.budget // len(self.runs)), run.run)
        kept = np.unique(self.newest())
        some = kept[np.unique(np.linspace(0, len(kept) - 1, NOTICED).round().astype(int))]
        of_new, *of_known = (noted.score for noted in novelty.score_each([as_many, *(self._tests[i] for i in some)]))
        return BeforeLearning(
            new_run_auc=auc(of_new, np.concatenate(of_known)),
            probability_auc=auc(-new.max(axis=1), -surest),
            nearest_run=self.runs[nearest],
            nearest_probability=float(mean[nearest]),
        )


def evaluate_row(scores: Scores, newest: np.ndarray | None = None) -> MatrixRow:
    """Accuracy and AUC of each run.

    newest: as `Evaluator.newest` gives it, where a run may have been learnt twice; its experiences have the same figures.
    Else every class has a lumisection.

    accuracy[i]: R[t, i], the share of run i's lumisections whose largest probability is run i's.
    auc[i]: run i's probability among all runs seen, run i's lumisections against those of all others: it has more to tell
    apart as runs arrive.
    auc_fixed[i]: run i's probability among runs 0..max(i, 1), its lumisections against those of these runs alone: what there
    was to tell apart when it was learnt, so that it falls by forgetting only. For strategies whose scores of a run never
    change (the closed forms) it never moves, but for what the budget leaves out.
    """
    order = np.argsort(scores.labels, kind="stable")
    labels, by_run = scores.labels[order], np.ascontiguousarray(scores.log_probability[order].T)
    named = scores.log_probability.argmax(axis=1)[order]
    # Row k: log of the probability that runs 0..k share, which makes the probability among them.
    among_first = np.logaddexp.accumulate(by_run, axis=0)
    end = np.searchsorted(labels, np.arange(len(by_run)), side="right")
    counts = np.diff(end, prepend=0)
    row = MatrixRow([], [], [])
    for i, of_run in enumerate(by_run):
        if not counts[i]:
            continue
        mine = slice(end[i - 1] if i else 0, end[i])
        # Of the runs learnt up to then two are still asked, or of as few later ones as make two.
        last = max(i, int(np.flatnonzero(np.cumsum(counts > 0) >= 2)[0]))
        row.accuracy.append(float(np.mean(named[mine] == i)))
        row.auc.append(_auc_within(of_run, mine))
        row.auc_fixed.append(_auc_within((of_run - among_first[last])[: end[last]], mine))
    if newest is None:
        return row
    place = np.cumsum(counts > 0) - 1
    return MatrixRow(*([figures[place[i]] for i in newest] for figures in (row.accuracy, row.auc, row.auc_fixed)))


def _auc_within(scores: np.ndarray, positive: slice) -> float:
    """`auc` of some scores against all others: counted in one sort, where ranks take ten passes."""
    ascending, mine = np.sort(scores), scores[positive]
    n, m = len(mine), len(scores) - len(mine)
    # Each pair is counted twice, half for a tie; the pairs of two positives come to n² in all.
    twice = np.searchsorted(ascending, mine, side="left").sum() + np.searchsorted(ascending, mine, side="right").sum()
    return float((twice - n * n) / 2 / (n * m))


def _score(strategy: Scorer, parts: list[Maps]) -> Scores:
    return Scores(
        np.concatenate([log_softmax(strategy.scores(maps), axis=1) for maps in _in_batches(parts)]),
        np.repeat(np.arange(len(parts)), [len(maps) for maps in parts]),
        np.concatenate([maps.lumisection for maps in parts]),
    )


def _in_batches(parts: list[Maps]) -> Iterator[Maps]:
    """The same lumisections in the same order, small parts joined: 1000 runs of 6 are not 1000 calls."""
    batch: list[Maps] = []
    size = 0
    for i, maps in enumerate(parts):
        batch.append(maps)
        size += len(maps)
        if i == len(parts) - 1 or size >= BATCH:
            yield joined(batch)
            batch, size = [], 0


def _first_of(maps: Maps, share: int, run: int) -> Maps:
    if len(maps) <= share:
        return maps
    keep = np.random.default_rng(run).permutation(len(maps))[:share]
    return maps.take(np.sort(keep))
