"""Metrics of continual learning: averages, forgetting, transfer, the worst case, and the closed share of a gap.

All are computed from a matrix R. R[t, i] is the accuracy on run i after experience t, among all T runs so far; rows and columns
count from 0. Row 0 is empty, since with one run there is nothing to tell apart; the first figure of run 0 is in row 1.

Forward transfer is defined where labels are fixed: in the task of runs there is no class for a run that was not learnt yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Matrix = list[list[float | None]]
"""T rows of T entries; None where R is not defined (row 0, and i > t)."""


def matrix(rows: Sequence[Sequence[float | None] | None]) -> Matrix:
    """A T x T matrix from its rows. Row t has t + 1 entries, or is None."""
    size = len(rows)
    full: Matrix = []
    for row in rows:
        known = [] if row is None else list(row)
        full.append([*known, *[None] * (size - len(known))])
    return full


def average(values: Matrix) -> float | None:
    """Mean of the last row: 1/T sum_i R[T-1, i] (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 2). None before row 1."""
    return _mean(values[-1]) if values else None


def weighted_average(values: Matrix, weights: Sequence[float]) -> float | None:
    """sum_i w_i R[T-1, i] / sum_i w_i. With the numbers of test lumisections as weights it is the share of all test
    lumisections that are given to the right run, where each run counts as much as it was measured. None before row 1."""
    return _weighted(values[-1], weights) if values else None


def interval_of_share(share: float, lumisections: int) -> tuple[float, float]:
    """Lowest and highest true share at 95 % for one measured on so many independent lumisections (Wilson, JASA 22 (1927) 209).

    Neighbours that share what a strategy does not know are worth fewer, so the interval is a lower bound on the uncertainty.
    """
    z2 = 1.96**2
    if lumisections < 1:
        return 0.0, 1.0
    middle = (share + z2 / (2 * lumisections)) / (1 + z2 / lumisections)
    half = (z2 * (share * (1 - share) / lumisections + z2 / (4 * lumisections**2))) ** 0.5 / (1 + z2 / lumisections)
    return max(0.0, middle - half), min(1.0, middle + half)


def any_time(values: Matrix) -> float | None:
    """Mean over t of the average after experience t: 1/(T-1) sum over t >= 1 of 1/(t+1) sum_i R[t, i].

    The average any-time accuracy of Caccia et al. (ICLR 2022), as written by Soutif-Cormerais et al. (ICCV workshops 2023) with
    each experience counted once, and the average incremental accuracy of Rebuffi et al. (CVPR 2017). They include the first
    experience, where accuracy is 1 by definition; here it has no row. None before row 1.
    """
    return _mean([_mean(row) for row in values])


def forgetting(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of (max over t < T-1 of R[t, i]) - R[T-1, i] (Chaudhry et al., ECCV 2018, eq. 3).

    Negative where accuracy on a run was never higher than it is now. Mammoth includes the last row in the maximum, so its value
    is never negative; the two agree where no run is at its best in the last row. None before three runs.
    """
    return _mean(drops(values, max))


def forgetting_initial(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of R[first, i] - R[T-1, i], where `first` is the row in which run i was learnt.

    Avalanche's forgetting, averaged over all runs but the newest. None before three runs.
    """
    return _mean(drops(values, lambda before: before[0]))


def backward_transfer(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of R[T-1, i] - R[i, i] (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 3).

    The negative of `forgetting_initial`; for run 0, R[i, i] is taken from row 1. Positive where later runs improved accuracy on
    earlier ones. None before three runs.
    """
    lost = forgetting_initial(values)
    return None if lost is None else -lost


def forward_transfer(before: Sequence[float | None], chance: float) -> float | None:
    """1/(T-1) sum over i > 0 of R[i-1, i] - chance (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 4), of fixed labels.

    before: R[i-1, i], on each experience before it was learnt, None for the first. chance: of a classifier that learnt nothing.
    """
    value = _mean(before)
    return None if value is None else value - chance


def min_accuracy_per_experience(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of min over t > first of R[t, i]: lowest accuracy on each earlier run after it was learnt.

    min-ACC of De Lange et al. (ICLR 2023, "Continual evaluation for lifelong learning"), with the minimum over the ends of
    experiences only. It misses a drop that recovers within one training (the stability gap): see
    `min_accuracy_within_training`. None before three runs.
    """
    lowest = []
    for i in range(len(values) - 1):
        known = [value for row in values if (value := row[i]) is not None]
        if len(known) > 1:
            lowest.append(min(known[1:]))
    return _mean(lowest)


def min_accuracy_within_training(watched: Sequence[Mapping[int, float]]) -> float | None:
    """Mean over the watched runs of the lowest accuracy measured since the run was learnt.

    min-ACC of De Lange et al. (ICLR 2023), measured during training too, on a few lumisections of a sample of runs
    (`learners.evaluation.stability_gap`). watched: for each training, class -> lowest accuracy during it and at its end, for
    runs learnt before it. The mean is over the runs watched in the last training. None where nothing was watched.
    """
    if not watched:
        return None
    return _mean([min(lowest[i] for lowest in watched if i in lowest) for i in watched[-1]])


def worst_case(values: Matrix, min_accuracy: float | None) -> float | None:
    """1/T R[T-1, T-1] + (1 - 1/T) min-ACC, the worst-case accuracy WC-ACC of De Lange et al. (ICLR 2023).

    min_accuracy: one of the two above. None where that is None.
    """
    newest = values[-1][-1] if values else None
    if newest is None or min_accuracy is None:
        return None
    return newest / len(values) + (1 - 1 / len(values)) * min_accuracy


def gap_closed(naive: Sequence[float | None], own: Sequence[float | None], joint: Sequence[float | None]) -> list[float | None]:
    """Share of the gap between naive and joint learning that is closed: (own - naive) / (joint - naive) at each t.

    naive, own, joint: average accuracies. 0 is as good as no method, 1 as good as having all past data; values below 0 and
    above 1 occur. None where an average is None or joint is not above naive. Read it beside the averages: where the gap is
    small compared with their errors, the share means little.
    """
    return [
        None if n is None or a is None or j is None or j <= n else (a - n) / (j - n)
        for n, a, j in zip(naive, own, joint, strict=True)
    ]


def averages(values: Matrix) -> list[float | None]:
    """The average after each experience; None where its row is empty."""
    return [_mean(row) for row in values]


def drops(values: Matrix, reference: Callable[[list[float]], float]) -> list[float]:
    """For each run but the newest: `reference` of its earlier entries minus its last entry. Empty before three runs."""
    lost = []
    for i in range(len(values) - 1):
        before = [value for row in values[:-1] if (value := row[i]) is not None]
        last = values[-1][i]
        if before and last is not None:
            lost.append(reference(before) - last)
    return lost


def weighted_forgetting(values: Matrix, weights: Sequence[float]) -> float | None:
    """`forgetting` with each run weighted, as by its test lumisections.

    The best of several accuracies that are measured on few lumisections lies above the true one by chance, so short runs seem
    to be forgotten: they count less here. None before three runs, and where a run has no accuracy.
    """
    return _weighted(drops(values, max), weights[:-1])


def _weighted(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted mean of the values that are known; None without one, or without a weight for each."""
    if len(values) != len(weights):
        return None
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in known)
    return float(sum(value * weight for value, weight in known) / total) if total else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
