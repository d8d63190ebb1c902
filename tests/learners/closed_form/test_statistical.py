"""Statistical memory: gains and common modes are found where they are, and nowhere else; a full budget merges what is alike."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.simulator import LIVE, SimulatedRun, stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import Maps
from dqmstream.learners.response.law import sensitivity
from dqmstream.learners.response.rings import medians
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import Geometry
from tests.learners.streams import FIRST_RUN, draw_run, make_stream, reader

ROW_BYTES = 932 + 36 + 22 + 4 + 4
"""Of HE depth 1: gains, spreads of 36 boxes, errors of 11 rings; weight and the class's row."""


def learnt(runs: list[SimulatedRun], memory_bytes: int = 1_000_000) -> Statistical:
    strategy = Statistical(Geometry(1), 0, memory_bytes)
    data = [as_run_data(run, Split()) for run in runs]
    for number, run in enumerate(data):
        strategy.learn(number, run, data.__getitem__)
    return strategy


def accuracy(strategy: Statistical | GainMap, runs: list[SimulatedRun]) -> float:
    tests = [as_run_data(run, Split()).part(Part.TEST) for run in runs]
    return float(np.mean([np.mean(strategy.scores(test).argmax(axis=1) == k) for k, test in enumerate(tests)]))


@pytest.fixture(scope="module")
def structured() -> list[SimulatedRun]:
    return list(stream("structured", seed=3, runs=8, lumisections=400))


def test_boxes_with_a_common_mode_are_found_with_their_spread(structured: list[SimulatedRun]) -> None:
    strategy = learnt(structured)
    for run, sigmas in zip(structured, strategy.sigmas, strict=True):
        true = {box["side"] * box["n"] for box in run.truth["common_mode"]}
        assert set(strategy.boxes.names[sigmas > 0.015]) == true
        np.testing.assert_allclose(sigmas[sigmas > 0.015], 0.03, rtol=0.35)


def test_runs_that_differ_only_in_common_modes_are_separated_unlike_by_a_gain_map(structured: list[SimulatedRun]) -> None:
    gains = GainMap(Geometry(1), 0)
    data = [as_run_data(run, Split()) for run in structured]
    for number, run in enumerate(data):
        gains.learn(number, run, data.__getitem__)
    assert accuracy(gains, structured) < 0.25
    assert accuracy(learnt(structured), structured) > 0.55


def test_on_null_no_common_mode_is_found_and_accuracy_is_chance() -> None:
    runs = list(stream("null", seed=4, runs=8, lumisections=400))
    strategy = learnt(runs)
    assert np.count_nonzero(strategy.sigmas > 0.01) <= 1  # of 288
    assert abs(accuracy(strategy, runs) - 1 / 8) < 0.07  # four binomial deviations of 480


@pytest.mark.parametrize("backwards", [False, True])
def test_runs_with_twelve_times_the_pileup_are_separated_as_by_a_gain_map(backwards: bool) -> None:
    for seed in (0, 3):
        runs = list(stream("pair", seed=seed, runs=2, lumisections=400))[:: -1 if backwards else 1]
        gains, data = GainMap(Geometry(1), 0), [as_run_data(run, Split()) for run in runs]
        for number, run in enumerate(data):
            gains.learn(number, run, data.__getitem__)
        assert accuracy(learnt(runs), runs) == accuracy(gains, runs) == 1.0


def test_gains_are_those_of_the_simulated_channels() -> None:
    """Pulls against the true ratios of rates are standard normal, in dim and in nearly full channels."""
    runs = list(stream("moderate", seed=5, runs=3, lumisections=400))
    strategy = learnt(runs)
    of_counts = sensitivity(1 - medians(strategy.reference.typical.fired[0], strategy.reference.ring))
    for run, gain, error in zip(runs[1:], strategy.gains[1:], strategy.gain_errors[1:], strict=True):
        ratio = run.rate[LIVE] / np.where(runs[0].rate[LIVE] > 0, runs[0].rate[LIVE], 1)
        usual = (ratio > 0.5) & (ratio < 1.5)
        for group in (usual & (of_counts > 0.1), usual & (of_counts < 0.05)):
            pull = (gain - (ratio - 1))[group] / np.hypot(error, strategy.gain_errors[0])[group]
            assert group.sum() > 100
            assert abs(np.median(pull)) < 0.5
            assert 0.6 < np.median(np.abs(pull)) / 0.6745 < 1.5
        dead = (ratio == 0) & (runs[0].rate[LIVE] > 0)
        np.testing.assert_allclose(gain[dead], -1, atol=0.01)


def test_a_row_costs_a_kilobyte_and_a_full_budget_merges_the_runs_that_are_most_alike() -> None:
    """Two of the five runs are the same detector: these share a row, and have equal scores."""
    rng = np.random.default_rng(6)
    detectors = np.exp(0.05 * rng.standard_normal((4, int(LIVE.sum()))))
    runs = [draw_run(detectors[i], rng, 200, FIRST_RUN + number) for number, i in enumerate((0, 1, 2, 3, 1))]
    free, full = (Statistical(Geometry(1), 0, budget) for budget in (1_000_000, 4 * ROW_BYTES + 100))
    for number, run in enumerate(runs):
        for strategy in (free, full):
            log = strategy.learn(number, run, reader(runs))
    assert free.memory_bytes() == 5 * ROW_BYTES
    assert full.memory_bytes() <= 4 * ROW_BYTES + 100
    assert log.notes["rows"] == 4
    assert full.classes == 5
    test = runs[2].part(Part.TEST)
    scores = full.scores(test)
    np.testing.assert_array_equal(scores[:, 1], scores[:, 4])
    assert (scores.argmax(axis=1) == 2).all()
    weight = full.state()["weight"]
    assert sorted(weight) == [1, 1, 1, 2]


def test_a_budget_below_one_run_is_refused() -> None:
    (run,) = make_stream(1, drift=0)
    with pytest.raises(InputError, match="cannot hold what is kept of one run"):
        Statistical(Geometry(1), 0, 900).learn(0, run, reader([run]))


def test_a_state_that_lacks_a_part_is_refused() -> None:
    (run,) = make_stream(1, drift=0)
    strategy = Statistical(Geometry(1), 0, 100_000)
    strategy.learn(0, run, reader([run]))
    state = strategy.state()
    del state["sigmas"]
    with pytest.raises(StateError, match="lacks sigmas"):
        Statistical(Geometry(1), 0, 100_000).restore(state)


def test_a_state_of_another_type_of_rows_is_refused() -> None:
    (run,) = make_stream(1, drift=0)
    strategy = Statistical(Geometry(1), 0, 100_000)
    strategy.learn(0, run, reader([run]))
    state = strategy.state()
    state["gains"] = state["gains"].astype(np.float16)
    with pytest.raises(StateError, match="gains of other types"):
        Statistical(Geometry(1), 0, 100_000).restore(state)


def test_wrong_conditions_and_broken_lumisections_do_not_affect_others() -> None:
    """Events and pileup are free: a lumisection with 5 % fewer counts is still given to its run; a dark one to none."""
    runs = make_stream(4, drift=0.03, seed=7)
    strategy = Statistical(Geometry(1), 0, 1_000_000)
    for number, run in enumerate(runs):
        strategy.learn(number, run, reader(runs))
    test = runs[2].part(Part.TEST)
    fallen = np.floor(test.counts * 0.95)
    fallen[-1] = 0
    scores = strategy.scores(Maps(fallen, test.n_events, test.pileup, test.lumisection))
    assert np.isfinite(scores).all()
    assert (scores[:-1].argmax(axis=1) == 2).all()


def test_medians_within_rings() -> None:
    values = np.array([[1.0, 5.0, 3.0, 10.0, 20.0]])
    np.testing.assert_array_equal(medians(values, np.array([0, 0, 0, 1, 1])), [[3, 3, 3, 15, 15]])
