"""The evaluator: rows of the matrices, by hand and against scikit-learn, and what an evaluation costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn import metrics

from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.evaluation.evaluator import NOTICED, VALIDATION_SHARE, Evaluator
from dqmstream.learners.evaluation.matrix_row import Scores, evaluate_row
from dqmstream.learners.evaluation.roc import auc, roc_curve
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.novelty import NewRunScores
from dqmstream.learners.splits import Part, assign
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

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
    """A head biased to the newest run gives every lumisection to it and still ranks perfectly."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 50)
    logits = rng.normal(0, 0.1, (150, 3)) + 3 * np.eye(3)[labels] + np.array([0, 0, 9])
    row = evaluate_row(scored(logits, labels))
    assert row.accuracy == [0.0, 0.0, 1.0]
    assert min(row.auc) > 0.99


def test_auc_against_the_fixed_set_falls_by_forgetting_alone() -> None:
    """With scores that never change, AUC against all runs falls as runs arrive, and against the fixed set it does not."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(6), 40)
    logits = rng.normal(0, 1, (240, 6)) + 1.5 * np.eye(6)[labels]
    rows = []
    for t in range(2, 7):
        seen = labels < t
        rows.append(evaluate_row(scored(log_softmax(logits[seen, :t], axis=1), labels[seen])))
    for i in range(6):
        np.testing.assert_allclose([row.auc_fixed[i] for row in rows if i < len(row.auc)], rows[max(i, 1) - 1].auc_fixed[i])
        assert rows[max(i, 1) - 1].auc[i] == pytest.approx(rows[max(i, 1) - 1].auc_fixed[i]), "when it is learnt they are one"
    assert rows[-1].auc[0] < rows[0].auc[0]
    # What is forgotten shows in both; what run 1 still says of run 0 is left.
    logits[:, 0] = rng.normal(0, 1, 240)
    forgot = evaluate_row(scored(log_softmax(logits, axis=1), labels))
    assert forgot.auc_fixed[0] < rows[-1].auc_fixed[0] - 0.1
    assert forgot.auc[0] < rows[-1].auc[0] - 0.1


def test_auc_against_the_fixed_set_by_hand() -> None:
    probability = np.log([[0.2, 0.1, 0.7], [0.3, 0.2, 0.5], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4], [0.1, 0.1, 0.8]])
    row = evaluate_row(scored(probability, np.array([0, 0, 1, 1, 2])))
    # Run 0 among runs 0 and 1: 2/3 and 3/5, against 1/2 and 1/3.
    assert row.auc_fixed[0] == 1.0
    # Among all it is .2 and .3, against .1, .2 and .1: five pairs won and one drawn.
    assert row.auc[0] == pytest.approx(5.5 / 6)


class Counting:
    """Scores everything alike, and counts the lumisections and calls."""

    def __init__(self) -> None:
        self.classes = self.lumisections = self.calls = 0

    def scores(self, maps: Maps) -> np.ndarray:
        self.lumisections += len(maps)
        self.calls += 1
        return np.zeros((len(maps), self.classes))


class Noticing:
    """Stands in for the new-run score, and counts the runs."""

    runs = 0

    def score_each(self, several: Sequence[Maps]) -> list[NewRunScores]:
        self.runs += len(several)
        return [NewRunScores(*np.zeros((4, len(maps)))) for maps in several]


def tiny_run(run: int) -> RunData:
    """400 lumisections of a single cell: 60 for test, 20 for validation."""
    lumisection = np.arange(1, 401)
    known = np.full(400, np.nan)
    return RunData(run, Maps(np.zeros((400, 1, 1, 1), np.float32), known, known, lumisection), assign(lumisection))


def test_an_evaluation_costs_the_same_at_the_thousandth_run() -> None:
    evaluator, strategy, noticed = Evaluator(6000), Counting(), Noticing()
    spent, calls = {}, {}
    for number in range(1000):
        run = tiny_run(370000 + number)
        evaluator.add(run)
        strategy.classes = number + 1
        if number in (99, 499, 999):
            strategy.lumisections = strategy.calls = 0
            tests = evaluator.score(strategy)
            validation = evaluator.score_validation(strategy)
            evaluator.before(strategy, noticed, tiny_run(1), tests.log_probability.max(axis=1))
            spent[number], calls[number] = strategy.lumisections, strategy.calls
            assert len(tests.labels) <= 6000
            assert len(validation.labels) <= 6000 // VALIDATION_SHARE
            assert set(tests.labels) == set(validation.labels) == set(range(number + 1)), "no run is left out"
    # An evaluation and the new run's own test part: of the known runs nothing is asked twice.
    assert max(spent.values()) <= 6000 + 6000 // VALIDATION_SHARE + 60
    assert max(calls.values()) < 100
    assert noticed.runs <= 3 * (NOTICED + 1)
    assert len(evaluator.score(strategy).labels) == 6 * 1000


def test_validation_stays_within_its_budget_when_there_are_more_runs() -> None:
    evaluator, strategy = Evaluator(60), Counting()
    kept: list[set[int]] = []
    for number in range(90):
        evaluator.add(tiny_run(370000 + number))
        strategy.classes = number + 1
        labels = evaluator.score_validation(strategy).labels
        assert 10 <= len(labels) <= 20
        kept.append(set(labels.tolist()))
        assert set(evaluator.score(strategy).labels) == set(range(number + 1)), "every run is judged"
    assert kept[19] == set(range(20))
    assert kept[20] == set(range(0, 21, 2))
    assert kept[89] == set(range(0, 90, 8))


def test_a_run_is_judged_before_it_is_learnt_by_what_was_just_said_of_the_others() -> None:
    stream = make_stream(5, drift=0.003, n=400)
    strategy = GainMap(Geometry(1), 0)
    asked, not_asked = Evaluator(50), Evaluator(50)
    for number, run in enumerate(stream):
        if number >= 2:
            largest = asked.score(strategy).log_probability.max(axis=1)
            assert asked.before(strategy, Noticing(), run, largest) == not_asked.before(strategy, Noticing(), run)
        strategy.learn(number, run, reader(stream))
        for evaluator in (asked, not_asked):
            evaluator.add(run)


def test_what_is_kept_later_is_a_part_of_what_was_kept_before() -> None:
    evaluator, strategy = Evaluator(100), Counting()
    strategy.classes = 1
    kept: list[set[int]] = []
    for number in range(20):
        evaluator.add(tiny_run(370000 + number))
        scores = evaluator.score(strategy)
        kept.append(set(scores.lumisection[scores.labels == 0].tolist()))
    assert len(kept[0]) == 60
    assert len(kept[-1]) == 5
    assert all(later <= before for before, later in pairwise(kept))
    test = set(tiny_run(0).part(Part.TEST).lumisection.tolist())
    assert kept[0] <= test
