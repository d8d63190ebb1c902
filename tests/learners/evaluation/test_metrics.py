"""Metrics of the matrix R: by hand, against Mammoth's definitions, and against Avalanche itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from dqmstream.learners.evaluation.metrics import (
    Matrix,
    any_time,
    average,
    averages,
    backward_transfer,
    forgetting,
    forgetting_initial,
    gap_closed,
    matrix,
    min_accuracy_per_experience,
    min_accuracy_within_training,
    worst_case,
)

# Four runs; run 0 peaks at t=2 and is then half forgotten, run 1 drops at once and recovers, run 2 is kept.
R = matrix([None, [0.8, 0.9], [0.9, 0.5, 1.0], [0.4, 0.7, 1.0, 0.6]])


def test_the_matrix_is_square_and_empty_where_nothing_is_defined() -> None:
    assert R[0] == [None] * 4
    assert R[1] == [0.8, 0.9, None, None]


def test_averages_by_hand() -> None:
    assert average(R) == pytest.approx((0.4 + 0.7 + 1.0 + 0.6) / 4)
    assert averages(R) == [None, pytest.approx(0.85), pytest.approx(0.8), pytest.approx(0.675)]
    assert any_time(R) == pytest.approx((0.85 + 0.8 + 0.675) / 3)


def test_forgetting_and_transfer_by_hand() -> None:
    # max over t < 3 minus last: run 0 .9 - .4, run 1 .9 - .7, run 2 1 - 1
    assert forgetting(R) == pytest.approx((0.5 + 0.2 + 0.0) / 3)
    # first row in which the run was learnt (row 1 for run 0, since row 0 is empty) minus last
    assert forgetting_initial(R) == pytest.approx((0.4 + 0.2 + 0.0) / 3)
    assert backward_transfer(R) == pytest.approx(-(0.4 + 0.2 + 0.0) / 3)


def test_the_worst_case_by_hand() -> None:
    # After it had been learnt run 0 stood at .9 and .4, run 1 at .5 and .7, run 2 at 1.
    lowest = (0.4 + 0.5 + 1.0) / 3
    assert min_accuracy_per_experience(R) == pytest.approx(lowest)
    assert worst_case(R, lowest) == pytest.approx(0.6 / 4 + 0.75 * lowest)
    assert worst_case(R, None) is None


def test_a_fall_within_a_training_is_seen_only_by_watching() -> None:
    # Run 1 fell to .1 in the course of the third training; run 0 is no longer watched in the last one.
    watched = [{0: 0.6, 1: 0.1}, {1: 0.7, 2: 0.9}]
    assert min_accuracy_within_training(watched) == pytest.approx((0.1 + 0.9) / 2)
    assert min_accuracy_within_training([]) is None


def test_the_share_of_the_gap_by_hand() -> None:
    closed = gap_closed([None, 0.2, 0.2, 0.5, 0.5], [None, 0.6, 0.1, 0.5, 0.9], [None, 1.0, 0.7, 0.5, 0.8])
    assert closed[0] is None
    assert closed[1:3] == [pytest.approx(0.5), pytest.approx(-0.2)]
    assert closed[3] is None, "where joint is no better than naive there is no gap"
    assert closed[4] == pytest.approx(4 / 3)


def test_nothing_is_claimed_before_there_is_anything_to_tell_apart() -> None:
    for values in (matrix([]), matrix([None])):
        assert average(values) is None
        assert any_time(values) is None
        assert worst_case(values, 0.5) is None
    two = matrix([None, [1.0, 1.0]])
    for figure in (forgetting, forgetting_initial, backward_transfer, min_accuracy_per_experience):
        assert figure(two) is None


def random_triangle(seed: int, size: int) -> Matrix:
    rng = np.random.default_rng(seed)
    return matrix([list(rng.random(t + 1)) for t in range(size)])


def filled(values: Matrix) -> np.ndarray:
    return np.array([[0.0 if value is None else value for value in row] for row in values])


@pytest.mark.parametrize("seed", range(5))
def test_mammoths_definitions_agree_where_it_has_them(seed: int) -> None:
    """Mammoth's utils/metrics.py has a row for the first task too, zeros above the diagonal, and a maximum over all rows."""
    values = random_triangle(seed, 6)
    full = filled(values)
    earlier = np.arange(5)
    assert backward_transfer(values) == pytest.approx(np.mean(full[-1, earlier] - full[earlier, earlier]))
    by_mammoth = np.mean(full.max(axis=0)[earlier] - full[-1, earlier])
    lost = full[:-1].max(axis=0)[earlier] - full[-1, earlier]
    assert by_mammoth == pytest.approx(np.mean(np.maximum(lost, 0.0))), "it counts what was gained as nothing forgotten"
    assert forgetting(values) == pytest.approx(np.mean(lost))
    # Where every run is at its worst in the last row the two are the same.
    for column in range(6):
        full[column:, column] = np.sort(full[column:, column])[::-1]
    falling = matrix([row[: t + 1] for t, row in enumerate(full.tolist())])
    assert forgetting(falling) == pytest.approx(np.mean(full.max(axis=0)[earlier] - full[-1, earlier]))
    assert backward_transfer(falling) == pytest.approx(-forgetting(falling))


SAMPLES = 10


def by_avalanche(rows: list[list[float]], *, new_stream_each_time: bool) -> Iterator[float]:
    """Avalanche's StreamForgetting after each evaluation, driven by the callbacks that its templates would make.

    rows[t][i]: accuracy on run i after run t, a multiple of 1/10. new_stream_each_time: each run that arrives is wrapped as a
    stream of its own, as one must where their number is not known, and so is trained on as experience 0.
    """
    import torch
    from avalanche.evaluation.metrics.forgetting_bwt import StreamForgetting

    metric = StreamForgetting()
    truth = torch.zeros(SAMPLES, dtype=torch.long)
    for t, row in enumerate(rows):
        metric.before_training_exp(
            SimpleNamespace(experience=SimpleNamespace(current_experience=0 if new_stream_each_time else t))
        )
        metric.before_eval(SimpleNamespace())
        for i, accuracy in enumerate(row):
            wrong = torch.arange(SAMPLES) >= round(accuracy * SAMPLES)
            evaluated = SimpleNamespace(
                experience=SimpleNamespace(current_experience=i), mb_output=wrong.long(), mb_y=truth, mb_task_id=truth
            )
            metric.before_eval_exp(evaluated)
            metric.after_eval_iteration(evaluated)
            metric.after_eval_exp(evaluated)
        yield float(metric.result())


def test_avalanches_forgetting_is_initial_minus_last_and_blind_to_streams_made_anew() -> None:
    rows = [[1.0], [0.5, 1.0], [0.9, 0.4, 1.0], [0.2, 0.6, 0.8, 0.7]]
    *_, found = by_avalanche(rows, new_stream_each_time=False)
    assert found == pytest.approx(forgetting_initial(matrix(rows)))
    assert forgetting(matrix(rows)) == pytest.approx((0.8 + 0.4 + 0.2) / 3)
    # The same where the first run peaks later: it is not what Chaudhry et al. call forgetting.
    peaks_late = [[0.5], [1.0, 1.0], [0.5, 1.0, 1.0]]
    *_, found = by_avalanche(peaks_late, new_stream_each_time=False)
    assert (found, forgetting(matrix(peaks_late))) == (pytest.approx(0.0), pytest.approx(0.25))
    # Everything is forgotten at once, and nothing is reported.
    forgetful = [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]]
    *_, found = by_avalanche(forgetful, new_stream_each_time=True)
    assert (found, forgetting(matrix(forgetful)), forgetting_initial(matrix(forgetful))) == (0.0, 1.0, 1.0)
