"""Runs that were learnt more than once: several classes name one run, and the newest stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MERGED = -1e6
"""Log-probability of a class whose probability was added to that of a newer class of the same run."""


def newest_of_run(runs: Sequence[int]) -> np.ndarray:
    """For each experience the newest experience of the same run: int64, shape (T,). runs: the run of each experience."""
    last = {run: i for i, run in enumerate(runs)}
    return np.array([last[run] for run in runs], dtype=np.int64)


def merge_repeated(log_probability: np.ndarray, runs: Sequence[int]) -> np.ndarray:
    """Add the probabilities of all classes of a run in the column of its newest class.

    log_probability: shape (n, T), T classes, of the runs in `runs`. Returned unchanged where no run was learnt twice.
    """
    newest = newest_of_run(runs)
    older = np.flatnonzero(newest != np.arange(len(newest)))
    if not len(older):
        return log_probability
    merged = log_probability.copy()
    for i in older:
        merged[:, newest[i]], merged[:, i] = np.logaddexp(merged[:, newest[i]], merged[:, i]), _MERGED
    return merged
