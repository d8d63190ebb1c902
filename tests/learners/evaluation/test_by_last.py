"""Answers by the last n lumisections: sums by hand, what they may see, their calibration, and where they are measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax

from dqmstream.learners.evaluation.by_last import (
    IMPOSSIBLE,
    Temper,
    figures_by_last,
    fit_correlation,
    sums_of_last,
)
from dqmstream.learners.evaluation.calibration import fit_temperature
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import figures, matrix_by_last, results
from dqmstream.learners.evaluation.history import figures_by_last as of_history
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.matrix_row import Scores, evaluate_row
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Part, assign


def scored(log_probability: object, labels: object, lumisection: object) -> Scores:
    return Scores(np.asarray(log_probability, dtype=float), np.asarray(labels), np.asarray(lumisection))


def test_sums_by_hand() -> None:
    """Two runs; run 0 has two blocks, of lumisections 151 to 153 and 351, run 1 lacks lumisection 152."""
    probability = np.array([[0.8, 0.2], [0.4, 0.6], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])
    test = scored(np.log(probability), [0, 0, 0, 0, 1, 1, 1], [151, 152, 153, 351, 151, 153, 154])
    one, two, four = sums_of_last(test, (1, 2, 4))
    np.testing.assert_allclose(one.total, np.log(probability))
    assert two.size.tolist() == [1, 2, 2, 1, 1, 1, 2] and four.size.tolist() == [1, 2, 3, 1, 1, 2, 3]
    np.testing.assert_allclose(np.exp(two.total[:, 0]), [0.8, 0.32, 0.16, 0.1, 0.3, 0.6, 0.3])
    np.testing.assert_allclose(np.exp(four.total[2]), [0.8 * 0.4 * 0.4, 0.2 * 0.6 * 0.6])
    np.testing.assert_allclose(np.exp(four.log_probability()[2]), [0.128 / 0.2, 0.072 / 0.2])
    found = figures_by_last(test, np.arange(2))
    assert [one.lumisections for one in found] == [4, 8, 30] and found[0].summed == pytest.approx(13 / 7)
    assert found[0].accuracy == [0.75, 1.0], "only lumisection 351, which has no neighbours, is given to the other run"
    assert evaluate_row(test).accuracy == [0.25, pytest.approx(1 / 3)]


def test_later_lumisections_other_blocks_and_other_runs_change_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, lumisection = np.repeat([0, 1, 2], 60), np.tile(np.r_[151:181, 351:381], 3)
    before = log_softmax(rng.normal(0, 3, (180, 3)), axis=1)
    after = before.copy()
    changed = (labels == 1) & (lumisection >= 170) & (lumisection <= 180)
    after[changed] = log_softmax(rng.normal(0, 3, (changed.sum(), 3)), axis=1)
    both = (sums_of_last(scored(one, labels, lumisection)) for one in (before, after))
    for old, new in zip(*both, strict=True):
        same = (old.total == new.total).all(axis=1)
        np.testing.assert_array_equal(same, ~changed)


def test_the_order_in_which_lumisections_are_given_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    test = scored(log_softmax(rng.normal(0, 1, (40, 2)), axis=1), np.repeat([0, 1], 20), np.tile(np.arange(151, 171), 2))
    mixed = rng.permutation(40)
    other = Scores(*(getattr(test, name)[mixed] for name in ("log_probability", "labels", "lumisection")))
    assert figures_by_last(test, np.arange(2)) == figures_by_last(other, np.arange(2))


def test_a_run_of_fewer_lumisections_uses_as_many_as_there_are() -> None:
    test = scored(np.log([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8]]), [0, 0, 1], [151, 152, 151])
    four, _, thirty = sums_of_last(test)
    np.testing.assert_array_equal(four.total, thirty.total)
    assert thirty.size.tolist() == [1, 2, 1]


@pytest.mark.parametrize("blank", [np.nan, np.log(0.5)], ids=["no number", "all runs alike"])
def test_a_lumisection_without_evidence_adds_nothing(blank: float) -> None:
    clear, none = np.log([0.7, 0.3]), np.full(2, blank)
    test = scored([clear, none, none, clear], [0, 0, 0, 0], [151, 152, 153, 154])
    (sums,) = sums_of_last(test, (4,), counted=np.array([True, False, False, True]))
    assert sums.size.tolist() == [1, 1, 1, 2]
    assert sums_of_last(test, (1,), np.zeros(4, dtype=bool))[0].size.tolist() == [0] * 4
    np.testing.assert_allclose(np.exp(sums.log_probability()[:, 0]), [0.7, 0.7, 0.7, 0.49 / 0.58])


def test_a_run_that_is_impossible_stays_so() -> None:
    """A dead channel that counts: the exact likelihood of the run is zero, and no sum becomes nan."""
    test = scored([[-np.inf, 0.0], [0.0, -700.0], [0.0, -700.0]], [1, 1, 1], [151, 152, 153])
    (sums,) = sums_of_last(test, (4,))
    assert np.isfinite(sums.total).all() and sums.total[-1, 0] == IMPOSSIBLE
    assert sums.log_probability().argmax(axis=1).tolist() == [1, 1, 1]


def neighbours(rng: np.random.Generator, repeats: int, runs: int = 6, blocks: int = 40, size: int = 10) -> Scores:
    """Lumisections whose evidence comes anew every `repeats` numbers and is repeated in between."""
    labels = np.repeat(np.arange(runs), blocks * size)
    lumisection = np.tile((200 * np.arange(blocks)[:, None] + np.arange(151, 151 + size)).ravel(), runs)
    fresh = rng.normal(0, 1.5, (len(labels) // repeats, runs))
    signal = np.repeat(fresh, repeats, axis=0) + 1.5**2 * np.eye(runs)[labels]
    return scored(log_softmax(signal, axis=1), labels, lumisection)


def test_independent_lumisections_need_no_correlation_and_repeated_ones_do() -> None:
    """Evidence that is Normal(mu², mu²) for the true run and Normal(0, mu²) for others is Bayes' rule exactly."""
    rng = np.random.default_rng(2)
    independent, repeated = (neighbours(rng, repeats) for repeats in (1, 5))
    assert fit_temperature(independent.log_probability, independent.labels) == pytest.approx(1, abs=0.1)
    assert fit_correlation(independent, 1.0) < 0.03
    assert fit_correlation(repeated, 1.0) > 0.3
    test = neighbours(rng, 5)
    plain = figures_by_last(test, np.arange(6))[1]
    mended = figures_by_last(test, np.arange(6), neighbours(rng, 5), 1.0)[1]
    assert plain.calibration.ece == mended.calibration.ece > 3 * mended.calibration.ece_calibrated  # type: ignore[operator]
    assert plain.accuracy == mended.accuracy, "one factor for all runs does not change the most probable one"
    assert plain.correlation is None and plain.calibration.ece_calibrated is None


def test_tau_counts_neighbours() -> None:
    sums = sums_of_last(scored(np.log([[0.6, 0.4]] * 4), [0] * 4, range(151, 155)), (4,))[0]
    np.testing.assert_allclose(sums.log_probability(Temper(1.0, 1.0)), np.log([[0.6, 0.4]] * 4))
    np.testing.assert_allclose(Temper(2.0, 0.5).tau(np.array([0, 1, 3])), [2.0, 2.0, 4.0])


def line(number: int, log_probability: np.ndarray, labels: np.ndarray, lumisection: np.ndarray) -> HistoryLine:
    seen = labels <= number
    scores = scored(log_softmax(log_probability[seen, : number + 1], axis=1), labels[seen], lumisection[seen])
    row = evaluate_row(scores)
    return HistoryLine(
        number, 100 + number, "x", accuracy=row.accuracy, auc=row.auc, by_last=figures_by_last(scores, np.arange(number + 1))
    )


def test_forgetting_by_the_last_n_is_that_of_single_lumisections_on_another_matrix() -> None:
    rng = np.random.default_rng(3)
    labels, lumisection = np.repeat(np.arange(4), 30), np.tile(np.arange(151, 181), 4)
    lines = [HistoryLine(0, 100, "x")]
    for number in range(1, 4):  # evidence of run 0 fades from run to run
        strength = np.where(labels == 0, 1.5 - 0.5 * number, 1.0)[:, None]
        lines.append(line(number, rng.normal(0, 1, (120, 4)) + strength * np.eye(4)[labels], labels, lumisection))
    found = results(lines)
    rows = {n: of_n["accuracy_matrix"] for n, of_n in found["by_last"].items()}
    assert rows["1"] == found["accuracy_matrix"] and found["by_last"]["1"]["forgetting"] == found["forgetting"]
    expected = np.mean([max(row[i] for row in rows["8"][max(i, 1) : 3]) - rows["8"][3][i] for i in range(3)])
    assert found["by_last"]["8"]["forgetting"] == pytest.approx(expected)
    assert [found["by_last"][n]["average_accuracy"] for n in ("1", "4", "8", "30")] == sorted(
        found["by_last"][n]["average_accuracy"] for n in rows
    ), "independent evidence adds up"
    assert HistoryLine.from_json(lines[3].to_json()).by_last == lines[3].by_last


class Known:
    """Scores of a fixed law: evidence for the run, whose number the first cell of its maps holds."""

    def __init__(self, runs: int) -> None:
        self.runs, self.asked = runs, 0

    def scores(self, maps: Maps) -> np.ndarray:
        self.asked += len(maps)
        noise = np.random.default_rng(0).normal(0, 1, (10_000, self.runs))[maps.lumisection]
        return noise + 0.7 * (np.arange(self.runs) == maps.counts[:, 0, 0, :1])


def run(number: int, lumisections: int = 400) -> RunData:
    counts = np.ones((lumisections, 1, 64, 72), dtype=np.float32)
    counts[:, 0, 0, 0], counts[:, 0, 1, 0] = number, 3
    numbers = np.arange(1, lumisections + 1)
    nothing = np.full(lumisections, np.nan)
    return RunData(number, Maps(counts, nothing, nothing, numbers), assign(numbers))


def test_where_the_budget_is_too_small_whole_blocks_of_a_few_runs_are_kept() -> None:
    evaluator, runs = Evaluator(480), 12
    for number in range(8):
        evaluator.add(run(number))
    strategy = Known(runs)
    test = evaluator.score(strategy)
    assert evaluator.score_blocks(strategy, test) is test, "60 test lumisections of 8 runs are all kept"
    for number in range(8, runs):
        evaluator.add(run(number))
    test, validation = evaluator.score(strategy), evaluator.score_validation(strategy)
    strategy.asked = 0
    blocks, held_out = evaluator.score_blocks(strategy, test), evaluator.score_validation_blocks(strategy, validation)
    assert blocks is not None and held_out is not None and strategy.asked == 80 <= 480 / 8 + 20
    some = np.unique(blocks.labels).tolist()
    assert len(some) == 2 and np.unique(held_out.labels).tolist() == some
    for number in some:
        assert (np.diff(blocks.lumisection[blocks.labels == number]) == 1).all()
    found = figures_by_last(blocks, evaluator.newest())
    assert found[0].experiences == some and found[0].row("accuracy", runs)[some[1]] == found[0].accuracy[1]
    assert found[0].row("auc", runs).count(None) == runs - 2 and found[2].summed == 15.5
    history = [
        HistoryLine(0, 0, "x"),
        HistoryLine(1, 1, "x", by_last=[replace(found[0], experiences=[1], accuracy=[0.25], auc=[None])]),
    ]
    assert of_history(history, 4)["average_accuracy"] == 0.25 and of_history(history, 4)["average_auc"] is None
    assert matrix_by_last(history, 4, "accuracy")[1] == [None, 0.25]
    assert figures(history)["by_last"]["8"]["average_accuracy"] is None


def test_a_restored_evaluator_has_the_same_blocks() -> None:
    for runs in (5, 11):
        evaluator, strategy = Evaluator(480), Known(runs)
        for number in range(runs):
            evaluator.add(run(number))
        restored = Evaluator(480)
        restored.restore(evaluator.state())
        for one in (evaluator, restored):  # a run that is learnt again, and one more
            one.add(run(3))
            one.add(run(runs))
        strategy = Known(runs + 2)
        pair = [one.score_blocks(strategy, one.score(strategy)) for one in (evaluator, restored)]
        assert pair[0] is not None and pair[1] is not None
        np.testing.assert_array_equal(pair[0].log_probability, pair[1].log_probability)
        np.testing.assert_array_equal(pair[0].labels, pair[1].labels)


def test_a_state_of_an_older_version_has_no_blocks_where_lumisections_were_dropped() -> None:
    evaluator = Evaluator(480)
    for number in range(11):
        evaluator.add(run(number))
    old = {name: array for name, array in evaluator.state().items() if not name.startswith(("blocks", "thinned"))}
    restored = Evaluator(480)
    restored.restore(old)
    strategy = Known(11)
    assert restored.score_blocks(strategy, restored.score(strategy)) is None
    restored.add(run(11))
    blocks = restored.score_blocks(Known(12), restored.score(Known(12)))
    assert blocks is not None and np.unique(blocks.labels).tolist() == [11], "later runs are drawn"
    assert figures_by_last(blocks, restored.newest())[0].auc == [None]


def test_too_small_a_budget_gives_no_figures() -> None:
    evaluator = Evaluator(60)
    for number in range(3):
        evaluator.add(run(number))
    assert evaluator.score_blocks(Known(3), evaluator.score(Known(3))) is None
    restored = Evaluator(60)
    restored.restore(evaluator.state())
    assert restored.score_blocks(Known(3), restored.score(Known(3))) is None


def test_the_parts_of_a_run_that_are_summed_are_those_of_the_split() -> None:
    numbers = np.flatnonzero(assign(np.arange(1, 601)) == Part.TEST) + 1
    (sums,) = sums_of_last(scored(np.zeros((len(numbers), 2)), np.zeros(len(numbers), dtype=int), numbers), (30,))
    assert sums.size.tolist() == [*range(1, 31)] * 3
