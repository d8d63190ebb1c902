"""Curves that the report draws: accuracy and forgetting over a stream, accuracy against lumisections, and the ROC curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.experiments.report.learner_records import LearnerRecord
from dqmstream.experiments.statistics import Interval, clustered_mean
from dqmstream.learners.evaluation.history import matrix_by_last, results
from dqmstream.learners.evaluation.history_line import EVERY_LENGTH, HistoryLine
from dqmstream.learners.evaluation.repeated_runs import newest_of_run
from dqmstream.learners.evaluation.roc import auc, roc_curve


@dataclass(frozen=True, eq=False)
class Course:
    """Average accuracy and forgetting of a learner or baseline after each run, (T,) each, nan where undefined.

    beside: it is a baseline, drawn dashed.
    """

    name: str
    accuracy: np.ndarray
    forgetting: np.ndarray
    beside: bool


@dataclass(frozen=True, eq=False)
class Roc:
    """ROC curve of a run against all others: both rates have one shape and run from 0 to 1."""

    run: int
    false_positive: np.ndarray
    true_positive: np.ndarray
    auc: float


@dataclass(frozen=True, eq=False)
class CurveByLast:
    """Accuracy where the last n lumisections name the run, by n, with 95 % intervals from resampled runs.

    Empty where no n but 1 was measured.
    """

    name: str
    accuracy: dict[int, Interval]


def square(rows: list[list[float | None]]) -> np.ndarray:
    """A matrix of the history's results as float64, (T, T), nan where it is undefined."""
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows))


def course(name: str, lines: list[HistoryLine], *, beside: bool) -> Course:
    """Average accuracy and forgetting after each experience (`learners.evaluation.metrics`), in one pass over the matrix."""
    values = square(results(lines)["accuracy_matrix"])
    size = len(values)
    accuracy, lost = np.full(size, np.nan), np.full(size, np.nan)
    best = np.full(size, np.nan)
    for t, row in enumerate(values):
        if np.isfinite(row).any():
            accuracy[t] = np.nanmean(row)
        drops = (best - row)[:t]
        if np.isfinite(drops).any():
            lost[t] = np.nanmean(drops)
        best = np.fmax(best, row)
    return Course(name, accuracy, lost, beside)


def by_last_curve(name: str, lines: list[HistoryLine]) -> CurveByLast:
    """The curve of a learner or baseline after its last run."""
    runs = [line.run for line in lines]
    accuracy: dict[int, Interval] = {}
    for n in EVERY_LENGTH:
        row = matrix_by_last(lines, n, "accuracy")[-1]
        # A run that was learnt twice has one figure.
        known = {run: value for run, value in zip(runs, row, strict=True) if value is not None}
        if known:
            accuracy[n] = clustered_mean({(0, 0): known})
    return CurveByLast(name, accuracy if len(accuracy) > 1 else {})


def rocs(record: LearnerRecord) -> list[Roc]:
    """ROC curve of each run: its own test lumisections against those of all other runs, by the probability of that run."""
    if record.scores is None:
        return []
    curves = []
    for i, run in zip(newest_of_run(record.runs), record.runs, strict=True):
        mine = record.scores.labels == i
        positive, negative = record.scores.log_probability[mine, i], record.scores.log_probability[~mine, i]
        curves.append(Roc(run, *roc_curve(positive, negative), auc(positive, negative)))
    return curves
