"""A row of the accuracy and AUC matrices, computed from the scores of test lumisections.

Row t belongs to the moment right after experience t and has an entry for each of the t + 1 experiences so far. Row 0 is empty:
with one run there is nothing to tell apart. `learners.evaluation.metrics` computes figures from the matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.learners.evaluation.roc import auc_of_slice


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n lumisections of T experiences.

    log_probability: float64, shape (n, T). labels: the experience of each, int, shape (n,). lumisection: its number,
    int64, shape (n,).
    """

    log_probability: np.ndarray
    labels: np.ndarray
    lumisection: np.ndarray


@dataclass(frozen=True)
class MatrixRow:
    """Row t of the matrices, one entry an experience. The definitions are those of `evaluate_row`."""

    accuracy: list[float]
    auc: list[float]
    auc_fixed: list[float]


def evaluate_row(scores: Scores, newest: np.ndarray | None = None) -> MatrixRow:
    """Accuracy and AUC of each run.

    newest: `repeated_runs.newest_of_run` where a run may have been learnt twice; both of its experiences get the figures of the
    newest. Without it, every experience must have a lumisection.

    accuracy[i]: R[t, i], share of run i's lumisections for which run i has the largest probability.
    auc[i]: of run i's probability, run i's lumisections against all others. It covers more runs as they arrive.
    auc_fixed[i]: the same among runs 0..max(i, 1) alone, in probability and in lumisections: the runs that were known when run
    i was learnt. It falls by forgetting only; where scores never change, as those of closed forms, it is constant except for
    the lumisections that the budget drops.
    """
    order = np.argsort(scores.labels, kind="stable")
    labels, by_experience = scores.labels[order], np.ascontiguousarray(scores.log_probability[order].T)
    named = scores.log_probability.argmax(axis=1)[order]
    # Row k: log of the summed probability of experiences 0..k, the denominator of a probability among them.
    among_first = np.logaddexp.accumulate(by_experience, axis=0)
    end = np.searchsorted(labels, np.arange(len(by_experience)), side="right")
    counts = np.diff(end, prepend=0)
    row = MatrixRow([], [], [])
    for i, own in enumerate(by_experience):
        if not counts[i]:
            continue
        mine = slice(end[i - 1] if i else 0, end[i])
        # At least two of the experiences up to this one must have lumisections.
        last = max(i, int(np.flatnonzero(np.cumsum(counts > 0) >= 2)[0]))
        row.accuracy.append(float(np.mean(named[mine] == i)))
        row.auc.append(auc_of_slice(own, mine))
        row.auc_fixed.append(auc_of_slice((own - among_first[last])[: end[last]], mine))
    if newest is None:
        return row
    place = np.cumsum(counts > 0) - 1
    return MatrixRow(*([figures[place[i]] for i in newest] for figures in (row.accuracy, row.auc, row.auc_fixed)))


def by_experience(log_probability: np.ndarray, labels: np.ndarray) -> dict[int, tuple[float, float | None]]:
    """Accuracy and AUC, as in `evaluate_row`, of each experience that has lumisections.

    log_probability: (n, T). labels: ascending, (n,). AUC is None where only one experience has lumisections.
    """
    named, columns = log_probability.argmax(axis=1), np.ascontiguousarray(log_probability.T)
    there, begin, count = np.unique(labels, return_index=True, return_counts=True)
    found: dict[int, tuple[float, float | None]] = {}
    for i, first, lumisections in zip(there.tolist(), begin.tolist(), count.tolist(), strict=True):
        mine = slice(first, first + lumisections)
        area = auc_of_slice(columns[i], mine) if len(there) > 1 else None
        found[i] = float(np.mean(named[mine] == i)), area
    return found
