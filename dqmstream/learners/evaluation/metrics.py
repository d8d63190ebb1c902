"""What the matrix R says of a stream: averages, forgetting, transfer, the worst moment, and the share of a gap that is closed.

R[t, i] is the share of run i's test lumisections that are named right after experience t, among all runs seen at t. One has to
learn two runs before there is anything to tell apart, so row 0 is empty and the first figure of run 0 stands in row 1, like
that of run 1. T is the number of runs, and rows and columns count from 0.

Forward transfer (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 4) is left out: a head has no class for a run that it has not met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Matrix = list[list[float | None]]
"""T rows of T entries; None where nothing is defined (row 0, and i > t)."""


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
    return _mean(values[-1]) if values else None


def any_time(values: Matrix) -> float | None:
    """Mean over t of the average after experience t: 1/(T-1) sum over t >= 1 of 1/(t+1) sum_i R[t, i].

    The average any-time accuracy of Caccia et al. (ICLR 2022) as Soutif-Cormerais et al. write it (ICCV workshops 2023), each
    experience counting once; the same number is the average incremental accuracy of Rebuffi et al. (CVPR 2017). They begin
    with the first experience, where one run is named right by force; here it has no row. None before row 1.
    """
    return _mean([_mean(row) for row in values])


def forgetting(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of (max over t < T-1 of R[t, i]) - R[T-1, i] (Chaudhry et al., ECCV 2018, eq. 3).

    Negative where a run was never known as well as now. Mammoth takes the maximum over the last row too, and so never goes
    below zero; the two agree where no run is at its best in the last row. None before three runs: nothing was known before.
    """
    return _mean(drops(values, max))


def forgetting_initial(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of R[first, i] - R[T-1, i], where first is the row in which run i was learnt.

    What Avalanche calls forgetting, over runs other than the newest. None before three runs.
    """
    return _mean(drops(values, lambda before: before[0]))


def backward_transfer(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of R[T-1, i] - R[i, i] (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 3).

    For run 0, R[i, i] is in row 1. It is minus `forgetting_initial`: learning later runs helped the earlier ones where it is
    positive. None before three runs.
    """
    lost = forgetting_initial(values)
    return None if lost is None else -lost


def min_accuracy_per_experience(values: Matrix) -> float | None:
    """1/(T-1) sum over i < T-1 of min over t > first of R[t, i]: how low each earlier run fell after it had been learnt.

    min-ACC of De Lange et al. (ICLR 2023, "Continual evaluation for lifelong learning"), with the minimum over the ends of
    experiences alone. A fall that is made good within one training, the stability gap, is not seen here: see
    `min_accuracy_within_training`. None before three runs.
    """
    lowest = []
    for i in range(len(values) - 1):
        known = [value for row in values if (value := row[i]) is not None]
        if len(known) > 1:
            lowest.append(min(known[1:]))
    return _mean(lowest)


def min_accuracy_within_training(watched: Sequence[Mapping[int, float]]) -> float | None:
    """Mean over the watched runs of the lowest accuracy at any moment that was watched since the run was learnt.

    min-ACC of De Lange et al. (ICLR 2023), with moments in the course of training, for a sample of runs and a few
    lumisections of each (`learners.evaluation.stability_gap`). watched: for each training, class -> lowest accuracy in its
    course and at its
    end, of runs learnt before it. Runs that are watched in the last training count. None where nothing was watched.
    """
    if not watched:
        return None
    return _mean([min(lowest[i] for lowest in watched if i in lowest) for i in watched[-1]])


def worst_case(values: Matrix, min_accuracy: float | None) -> float | None:
    """1/T R[T-1, T-1] + (1 - 1/T) min-ACC, the worst-case accuracy WC-ACC of De Lange et al. (ICLR 2023).

    min_accuracy: one of the two above; the name under which it is printed says which. None where that is.
    """
    newest = values[-1][-1] if values else None
    if newest is None or min_accuracy is None:
        return None
    return newest / len(values) + (1 - 1 / len(values)) * min_accuracy


def gap_closed(naive: Sequence[float | None], own: Sequence[float | None], joint: Sequence[float | None]) -> list[float | None]:
    """(own - naive) / (joint - naive) at each t, of average accuracies: 0 is no help at all, 1 as good as having all past data.

    Below 0 it does worse than no method, above 1 better than the joint bound. None where an average is not defined or joint
    is not above naive: there is no gap to close. Where the gap is small against the error of the averages the share means
    little; read it beside them.
    """
    return [
        None if n is None or a is None or j is None or j <= n else (a - n) / (j - n)
        for n, a, j in zip(naive, own, joint, strict=True)
    ]


def averages(values: Matrix) -> list[float | None]:
    """The average after each experience; None where its row is empty."""
    return [_mean(row) for row in values]


def drops(values: Matrix, reference: Callable[[list[float]], float]) -> list[float]:
    """What each run but the newest has lost against `reference` of its earlier entries; empty before three runs."""
    lost = []
    for i in range(len(values) - 1):
        before = [value for row in values[:-1] if (value := row[i]) is not None]
        last = values[-1][i]
        if before and last is not None:
            lost.append(reference(before) - last)
    return lost


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
