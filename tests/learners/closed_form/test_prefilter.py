"""The prefilter drops no run that matters: with all runs evaluated, probabilities are the same."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.experiments.simulator import simulated_run
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.closed_form import density
from dqmstream.learners.closed_form.density import KnownRuns, log_densities
from dqmstream.learners.closed_form.prefilter import RULED_OUT, Prefilter
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import RunData
from dqmstream.learners.response.observation import Observation, observe
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import Geometry

RUNS = 100


def nth(number: int) -> RunData:
    return as_run_data(simulated_run("year", number, seed=5, lumisections=200), Split())


@pytest.fixture(scope="module")
def year() -> tuple[Statistical, Observation, KnownRuns, np.ndarray]:
    """A statistical memory of 100 runs in two blocks; two test lumisections of each run, and their runs."""
    strategy, tests = Statistical(Geometry(1), 0, 1_000_000), []
    for number in range(RUNS):
        run = nth(number)
        strategy.learn(number, run, nth)
        tests.append(run.part(Part.TEST).counts[:2, strategy.reference.live])
    gains, _, variances, _ = strategy.known()
    seen = observe(strategy.reference, np.concatenate(tests).astype(np.float64))
    return strategy, seen, KnownRuns(gains, variances), np.repeat(np.arange(RUNS), 2)


def of_all(strategy: Statistical, seen: Observation, runs: KnownRuns) -> np.ndarray:
    """Densities with no run dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "RULED_OUT", np.inf)
        return log_densities(seen, strategy.boxes, runs)


def without_prefilter(strategy: Statistical, seen: Observation, runs: KnownRuns) -> np.ndarray:
    """Densities without the prefilter, with conditions fitted from the start in each block."""
    everything = KnownRuns(runs.gains, runs.variances)
    everything.prefilter = None
    return log_densities(seen, strategy.boxes, everything)


def probabilities(scores: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)))


def test_probabilities_are_those_with_all_runs_evaluated(year: tuple[Statistical, Observation, KnownRuns, np.ndarray]) -> None:
    strategy, seen, runs, label = year
    short, full = log_densities(seen, strategy.boxes, runs), of_all(strategy, seen, runs)
    np.testing.assert_allclose(probabilities(short), probabilities(full), rtol=0, atol=1e-4)
    assert np.mean(full.argmax(axis=1) == label) > 0.7  # the runs differ
    left_out = ~np.isclose(short, full, rtol=0, atol=0.1)
    assert left_out.mean() > 0.1  # and some are dropped
    assert ((full.max(axis=1, keepdims=True) - full)[left_out] > RULED_OUT).all()
    assert ((short.max(axis=1, keepdims=True) - short)[left_out] > RULED_OUT).all()


def test_conditions_from_the_prefilter_are_as_good_as_those_fitted_from_the_start(
    year: tuple[Statistical, Observation, KnownRuns, np.ndarray],
) -> None:
    strategy, seen, runs, _ = year
    short, full = log_densities(seen, strategy.boxes, runs), without_prefilter(strategy, seen, runs)
    np.testing.assert_allclose(probabilities(short), probabilities(full), rtol=0, atol=2e-3)


def test_lumisections_with_faults_keep_the_runs_that_matter(
    year: tuple[Statistical, Observation, KnownRuns, np.ndarray],
) -> None:
    strategy, seen, runs, _ = year
    counts = np.rint(seen.deviation * (seen.residual + seen.leverage))
    rng = np.random.default_rng(0)
    counts[rng.random(counts.shape) < 0.01] = 0.0
    counts[::3, strategy.boxes.cells[4]] *= 0.3
    counts[1] = 0.0
    broken = observe(strategy.reference, counts)
    short, full = log_densities(broken, strategy.boxes, runs), of_all(strategy, broken, runs)
    assert np.isfinite(short).all()
    np.testing.assert_allclose(probabilities(short), probabilities(full), rtol=0, atol=1e-4)
    settled = probabilities(without_prefilter(strategy, broken, runs))
    np.testing.assert_allclose(probabilities(short), settled, rtol=0, atol=2e-3)


def test_channels_that_were_ever_faulty_are_not_used_if_there_are_others() -> None:
    rng = np.random.default_rng(0)
    gains = 0.01 * rng.standard_normal((70, 400))
    spoilt = np.zeros(400, dtype=int)
    spoilt[::2] = 1
    seen = Observation(*np.ones((3, 1, 400)), np.full((1, 400), 0.5), np.ones((1, 400)))
    before, _ = Prefilter(gains, spoilt).scores(seen)
    gains[:, ::2] = 5.0
    np.testing.assert_array_equal(Prefilter(gains, spoilt).scores(seen)[0], before)
    assert Prefilter(gains, spoilt).share == 4
