"""The pool of closed forms: held-out lumisections give the weight to the part that is right, within one budget of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.experiments.simulator.learner_input import simulate_runs
from dqmstream.learners.closed_form.pool import PARTS
from dqmstream.learners.closed_form.pool_weights import fit_weights, mean_gain
from dqmstream.learners.closed_form.stacked import Stacked
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader


def drawn(n: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three classes, (n,), and log-scores that are right: label k adds `strength` z + strength² / 2 to score k."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(3), n // 3)
    scores = strength * rng.standard_normal((len(label), 3))
    scores[np.arange(len(label)), label] += strength**2
    return label, scores


def test_a_part_that_is_right_has_weight_one_and_noise_none() -> None:
    label, right = drawn(3000, 1.0, 1)
    noise = drawn(3000, 1.0, 2)[1][np.random.default_rng(3).permutation(3000)]
    found = fit_weights(("right", "noise"), np.stack([right, noise]), label, np.array([0.0, 1.0]))
    assert found.weights[0] == pytest.approx(1.0, abs=4 * found.errors[0] + 0.02)
    assert found.weights[1] < 0.06
    assert 0 < found.errors[0] < 0.1


def test_a_part_that_is_too_sure_is_tempered() -> None:
    label, right = drawn(3000, 1.0, 4)
    found = fit_weights(("sure",), 5 * right[None], label, np.array([1.0]))
    assert found.weights[0] == pytest.approx(0.2, abs=0.02)


def test_the_maximum_is_found() -> None:
    label, one = drawn(300, 0.7, 5)
    other = 0.5 * one + drawn(300, 0.5, 6)[1]
    scores = np.stack([one, other])
    found = fit_weights(("one", "other"), scores, label, np.array([1.0, 0.0]))
    for change in ((0.05, 0.0), (-0.05, 0.0), (0.0, 0.05)):
        gain, _ = mean_gain(scores, label, found.weights, np.maximum(found.weights + change, 0.0))
        assert gain > -2e-3


def test_few_lumisections_leave_the_usual_weights() -> None:
    label, right = drawn(3, 1.0, 7)
    found = fit_weights(("right",), right[None], label, np.array([0.5]))
    assert abs(found.weights[0] - 0.5) < 0.2


def learnt(stream: list[RunData], memory_bytes: int = 1_000_000) -> Stacked:
    strategy = Stacked(Geometry(1), 0, memory_bytes)
    for number, run in enumerate(stream):
        strategy.learn(number, run, reader(stream))
    return strategy


def test_each_kind_of_difference_gets_its_part_the_weight() -> None:
    """Outside the law of gains the closed form of gains is at chance or wrong, and the pool is not."""
    for name, part in (("patterns", "modes"), ("transient", "outages")):
        stream = simulate_runs(name, seed=0, runs=4, lumisections=400)
        strategy = learnt(stream)
        accuracy = np.mean([(strategy.scores(r.part(Part.TEST)).argmax(axis=1) == k).mean() for k, r in enumerate(stream)])
        assert accuracy > (0.6 if name == "patterns" else 0.9)
        weights = dict(zip(strategy.chosen.names, strategy.weights, strict=True))
        assert weights[part] > 0


def test_inside_the_law_the_pool_is_as_good_as_the_closed_form_of_gains() -> None:
    stream = make_stream(4, drift=0.02, seed=3)
    strategy = learnt(stream)
    tests = [run.part(Part.TEST) for run in stream]
    alone = strategy.pool.statistical
    right = [np.mean(strategy.scores(test).argmax(axis=1) == k) for k, test in enumerate(tests)]
    by_gains = [np.mean(alone.scores(test).argmax(axis=1) == k) for k, test in enumerate(tests)]
    assert np.mean(right) > np.mean(by_gains) - 0.02


def test_where_the_budget_is_full_parts_are_dropped_and_gains_are_kept() -> None:
    stream = make_stream(6, drift=0.02, seed=3, n=200)
    names = []
    for budget in (30_000, 150_000, 1_000_000):
        strategy = learnt(stream, budget)
        assert strategy.memory_bytes() <= budget
        assert strategy.pool.statistical.classes == 6
        names.append(tuple(strategy.pool.parts))
        resumed = Stacked(Geometry(1), 0, budget)
        resumed.restore(strategy.state())
        test = stream[2].part(Part.TEST)
        np.testing.assert_array_equal(resumed.scores(test), strategy.scores(test))
    assert names[0][0] == "statistical" and len(names[0]) < len(names[1]) < len(names[2]) == len(PARTS)


def test_a_state_without_its_weights_is_refused() -> None:
    strategy = learnt(make_stream(2, drift=0.02, seed=3, n=200))
    state = {name: array for name, array in strategy.state().items() if not name.startswith("chosen")}
    with pytest.raises(StateError, match="weights of the pool lack"):
        Stacked(Geometry(1), 0, 1_000_000).restore(state)
