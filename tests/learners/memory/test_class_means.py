"""Class means, and the strategies that keep them: slda and ridge follow their formulas and merge means in a full budget."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.closed_form.ridge import STRENGTH, Ridge
from dqmstream.learners.closed_form.slda import SHRINKAGE, Slda, sketched
from dqmstream.learners.maps import RunData
from dqmstream.learners.memory.class_means import ClassMeans
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

STREAM = make_stream(3, drift=0.02, seed=1)


def learnt(strategy: Slda | Ridge, stream: list[RunData]) -> Slda | Ridge:
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    return strategy


def test_the_two_nearest_means_become_one_and_the_others_stay() -> None:
    rows = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0], [5.5, 0.0], [5.0, 0.5]])
    means = ClassMeans(3 * 8 + 3 * 4 + 5 * 4, np.float32)
    for row in rows:
        means.add(row)
        assert means.memory_bytes() <= means.budget_bytes
    # 1 and 3 first, and then the last with both.
    assert means.row_of_class.tolist() == [0, 1, 2, 1, 1]
    np.testing.assert_allclose(means.rows, [[0, 0], [15.5 / 3, 0.5 / 3], [0, 9]], rtol=1e-6)
    assert means.weight.tolist() == [1, 3, 1]
    assert means.notes == {"rows": 3, "classes_merged": 2}
    with pytest.raises(InputError, match="cannot hold the mean of one run"):
        ClassMeans(10, np.float32).add(rows[0])


def test_a_sketch_is_below_the_sum_of_squares_by_no_more_than_its_bound() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 20)) * np.geomspace(10, 0.1, 20)
    sketch = np.zeros((6, 20), np.float32)
    for part in np.split(rows, 6):
        sketch = sketched(sketch, part)
    missing = rows.T @ rows - sketch.T.astype(np.float64) @ sketch
    values = np.linalg.eigvalsh(missing)
    assert values[0] > -1e-3 * values[-1]
    assert values[-1] <= (rows**2).sum() / 6
    # Little of the strongest direction is missing; an empty sketch would miss all of it.
    assert values[-1] < 0.2 * np.linalg.eigvalsh(rows.T @ rows)[-1]


def test_slda_follows_its_formula() -> None:
    strategy = learnt(Slda(Geometry(1), 0, 20_000_000), STREAM)
    assert isinstance(strategy, Slda)
    parts = [strategy.reference.residuals(run.part(Part.TRAIN).counts).astype(np.float64) for run in STREAM]
    means = np.stack([part.mean(axis=0) for part in parts])
    within = np.concatenate([part - mean for part, mean in zip(parts, means, strict=True)])
    # A budget so large that the sketch has more rows than there are lumisections loses nothing.
    np.testing.assert_allclose(strategy.covariance(), within.T @ within / len(within), atol=2e-3)
    shrunk = (1 - SHRINKAGE) * within.T @ within / len(within) + SHRINKAGE * np.eye(932)
    weights = np.linalg.solve(shrunk, means.T)
    residuals = strategy.reference.residuals(STREAM[1].maps.counts)
    by_hand = residuals @ weights - 0.5 * (means.T * weights).sum(axis=0)
    np.testing.assert_allclose(strategy.scores(STREAM[1].maps), by_hand, atol=0.01 * by_hand.std())


def test_ridge_is_the_regression_on_its_features_whatever_the_order_of_runs() -> None:
    strategy = learnt(Ridge(Geometry(1), 0, 200_000), STREAM)
    assert isinstance(strategy, Ridge)
    parts = [strategy.features_of(run.part(Part.TRAIN)) for run in STREAM]
    h, label = np.concatenate(parts), np.repeat(np.arange(3), [len(part) for part in parts])
    weight = np.repeat([1 / (3 * len(part)) for part in parts], [len(part) for part in parts])
    gram, target = (h.T * weight) @ h, (h.T * weight) @ np.eye(3)[label]
    solved = np.linalg.solve(gram + STRENGTH * np.trace(gram) / len(gram) * np.eye(len(gram)), target)
    error = (weight[:, None] * (np.eye(3)[label] - h @ solved) ** 2).sum(axis=0).mean()
    np.testing.assert_allclose(
        strategy.scores(STREAM[1].maps), strategy.features_of(STREAM[1].maps) @ solved / error, rtol=1e-3
    )

    swapped = learnt(Ridge(Geometry(1), 0, 200_000), [STREAM[0], STREAM[2], STREAM[1]])
    np.testing.assert_allclose(swapped.scores(STREAM[1].maps)[:, [0, 2, 1]], strategy.scores(STREAM[1].maps), rtol=1e-3)


@pytest.mark.parametrize(("made", "budget"), [(Slda, 16_000), (Ridge, 1_000)])
def test_a_full_budget_merges_runs_and_reports_it(made: type[Slda] | type[Ridge], budget: int) -> None:
    stream = make_stream(8, drift=0.03, seed=2, n=100)
    strategy = made(Geometry(1), 0, budget)
    merged = []
    for experience, run in enumerate(stream):
        merged.append(strategy.learn(experience, run, reader(stream)).notes["classes_merged"])
        assert strategy.memory_bytes() <= budget
    assert merged[0] == 0 and merged[-1] > 0
    scores = strategy.scores(stream[0].maps)
    assert scores.shape == (100, 8) and len(np.unique(scores[0])) == 8 - merged[-1]
    resumed = made(Geometry(1), 0, budget)
    resumed.restore(strategy.state())
    np.testing.assert_array_equal(resumed.scores(stream[0].maps), scores)


@pytest.mark.parametrize("made", [Slda, Ridge])
def test_a_budget_that_holds_nothing_is_refused(made: type[Slda] | type[Ridge]) -> None:
    with pytest.raises(InputError, match="bytes"):
        learnt(made(Geometry(1), 0, 16), STREAM[:1])
