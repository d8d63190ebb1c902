"""The evaluator's figures, against matrices worked by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from dqmstream.learners.evaluation import Scores, auc, evaluate_row, roc_curve
from dqmstream.learners.metrics import average, forgetting, forgetting_initial, matrix

# Four runs; run 0 peaks at t=2 and is then half forgotten, run 1 drops at once and recovers, run 2 is kept.
R = matrix([None, [0.8, 0.9], [0.9, 0.5, 1.0], [0.4, 0.7, 1.0, 0.6]])


def test_the_matrix_is_square_and_empty_where_nothing_is_defined() -> None:
    assert R[0] == [None] * 4
    assert R[1] == [0.8, 0.9, None, None]


def test_average_and_forgetting_by_hand() -> None:
    assert average(R) == pytest.approx((0.4 + 0.7 + 1.0 + 0.6) / 4)
    # max over t < 3 minus last: run 0 .9 - .4, run 1 .9 - .7, run 2 1 - 1
    assert forgetting(R) == pytest.approx((0.5 + 0.2 + 0.0) / 3)
    # first row in which the run was learnt (row 1 for run 0, since row 0 is empty) minus last
    assert forgetting_initial(R) == pytest.approx((0.4 + 0.2 + 0.0) / 3)


def test_nothing_is_claimed_before_there_is_anything_to_tell_apart() -> None:
    assert average(matrix([])) is None
    assert average(matrix([None])) is None
    assert forgetting(matrix([None, [1.0, 1.0]])) is None
    assert forgetting_initial(matrix([None, [1.0, 1.0]])) is None


scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda values: np.array(values, float))


@given(scores, scores)
def test_auc_and_roc_agree_with_scikit_learn(positive: np.ndarray, negative: np.ndarray) -> None:
    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    both = np.concatenate([positive, negative])
    assert auc(positive, negative) == pytest.approx(metrics.roc_auc_score(truth, both))
    false_rate, true_rate = roc_curve(positive, negative)
    expected = metrics.roc_curve(truth, both, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected[0])
    np.testing.assert_allclose(true_rate, expected[1])
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(positive, negative))


def scored(log_probability: np.ndarray, labels: np.ndarray) -> Scores:
    return Scores(np.asarray(log_probability), labels, np.arange(1, len(labels) + 1))


def test_a_row_of_the_matrices() -> None:
    probability = np.log([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])
    row = evaluate_row(scored(probability, np.array([0, 0, 1, 2, 2])))
    assert row.accuracy == [0.5, 1.0, 1.0]
    assert row.auc == [1.0, 1.0, 1.0]


def test_auc_hides_what_accuracy_shows() -> None:
    """A head biased to the newest run names every lumisection after it and still ranks perfectly."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 50)
    logits = rng.normal(0, 0.1, (150, 3)) + 3 * np.eye(3)[labels] + np.array([0, 0, 9])
    row = evaluate_row(scored(logits, labels))
    assert row.accuracy == [0.0, 0.0, 1.0]
    assert min(row.auc) > 0.99
