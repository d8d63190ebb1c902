"""Redrawn lumisections are like real held-out ones under any conditions, and a network learns from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import RunData
from dqmstream.learners.networks.recipe import REDRAWN_RECIPE, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import Geometry
from tests.learners.streams import accuracy, draw_run, make_stream

RUNS = 6


def learnt(name: str) -> tuple[Statistical, list[RunData]]:
    runs = [as_run_data(run, Split()) for run in stream(name, seed=3, runs=RUNS, lumisections=400)]
    statistical = Statistical(Geometry(1), 0, 1_000_000)
    for number, run in enumerate(runs):
        statistical.learn(number, run, runs.__getitem__)
    return statistical, runs


@pytest.mark.parametrize("name", ["moderate", "small", "structured"])
def test_redrawn_lumisections_are_like_real_held_out_ones(name: str) -> None:
    """In mean, variance, common modes of boxes and the run that they are assigned to; compared with each run's test part."""
    statistical, runs = learnt(name)
    rng = np.random.default_rng(0)
    pulls, variances, boxes, named = [], [], [], []
    for k, run in enumerate(runs):
        real = run.part(Part.TEST).counts[:, statistical.reference.live]
        drawn = statistical.draw(np.full(20 * len(real), k), np.tile(real, (20, 1)), rng)
        assert drawn.dtype == np.float32
        assert (drawn == np.rint(drawn)).all()
        assert drawn.min() >= 0
        x, y = statistical.reference.residuals_of_live(real), statistical.reference.residuals_of_live(drawn)
        steady = np.minimum(x.var(axis=0), y.var(axis=0)) > 0.1  # leaves out dead channels
        pulls.append((x.mean(axis=0) - y.mean(axis=0))[steady] / np.sqrt(x.var(axis=0)[steady] / len(x)))
        variances.append(np.median(y.var(axis=0)[steady] / x.var(axis=0)[steady]))
        by_box = [statistical.boxes.sums(residuals).var(axis=0) for residuals in (y, x)]
        boxes.append(np.median(by_box[0] / by_box[1]))
        named.append([np.mean(statistical.scores_of_live(counts).argmax(axis=1) == k) for counts in (drawn, real)])
    # Gains have the error of 200 train lumisections, so a mean over 60 test ones deviates by 1.14 times its own error.
    assert np.median(np.abs(np.concatenate(pulls))) / 0.6745 == pytest.approx(1.14, abs=0.15)
    assert np.mean(variances) == pytest.approx(1.0, abs=0.06)
    assert np.mean(boxes) == pytest.approx(1.0, abs=0.15)
    of_drawn, of_real = np.mean(named, axis=0)
    assert of_drawn == pytest.approx(of_real, abs=0.12)


def test_noisy_boxes_are_as_noisy_when_redrawn() -> None:
    statistical, runs = learnt("structured")
    for k, run in enumerate(runs):
        real = run.part(Part.TRAIN).counts[:, statistical.reference.live]
        drawn = statistical.draw(np.full(len(real), k), real, np.random.default_rng(k))
        noisy = np.argsort(statistical.sigmas[k])[-2:]
        of_both = [
            statistical.boxes.sums(statistical.reference.residuals_of_live(counts)).var(axis=0)[noisy]
            for counts in (drawn, real)
        ]
        np.testing.assert_allclose(of_both[0], of_both[1], rtol=0.5)
        assert (
            of_both[0] > 2 * np.median(statistical.boxes.sums(statistical.reference.residuals_of_live(real)).var(axis=0))
        ).all()


def test_runs_are_redrawn_under_conditions_that_they_did_not_have() -> None:
    """A run at full rate, redrawn at a quarter of the events, is as the same detector would have counted there."""
    runs = make_stream(3, drift=0.03, seed=2, n=400)
    statistical = Statistical(Geometry(1), 0, 1_000_000)
    for number, run in enumerate(runs):
        statistical.learn(number, run, runs.__getitem__)
    dim = draw_run(np.ones(932), np.random.default_rng(1), 200, 1, scale=0.25).maps.counts[:, statistical.reference.live]
    drawn = statistical.draw(np.repeat([0, 1, 2], len(dim)), np.tile(dim, (3, 1)), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(dim.mean(), rel=0.05)
    named = statistical.scores_of_live(drawn).argmax(axis=1)
    assert np.mean(named == np.repeat([0, 1, 2], len(dim))) > 0.95


def test_a_network_learns_more_from_redrawn_lumisections_than_from_few_real_ones() -> None:
    """With 100 kB: statistics of 50 runs, or 53 lumisections in all."""
    runs = [as_run_data(run, Split()) for run in stream("small", seed=5, runs=4, lumisections=400)]
    recipe = replace(REDRAWN_RECIPE, dim=16, depth=2, heads=2, experts=4, steps=40, lr=3e-3)

    def learns(name: str, recipe: Recipe) -> float:
        strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=100_000, device="cpu")
        return accuracy(strategy, runs)

    assert learns("statistical_replay", recipe) > learns("replay", replace(recipe, noise=1.5)) + 0.05
