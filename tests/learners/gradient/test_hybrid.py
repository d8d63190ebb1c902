"""hybrid pools closed forms and a network; the network costs little where it adds nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.gradient.hybrid import PROBE, Hybrid
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part, assign
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import IETA, Geometry, he_depth1_mask
from tests.learners.streams import FIRST_RUN, RING_LAMBDA, K, make_stream, reader

RECIPE = Recipe(dim=32, depth=2, heads=2, experts=4, steps=100, batch=32, lr=3e-3, noise=0.0)


def learnt(name: str, stream: list[RunData]) -> Strategy:
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=RECIPE, memory_bytes=1_000_000, device="cpu")
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    return strategy


def accuracy(strategy: Strategy, stream: list[RunData]) -> float:
    return float(np.mean([np.mean(strategy.scores(run.part(Part.TEST)).argmax(axis=1) == k) for k, run in enumerate(stream)]))


def rings_against_each_other(runs: int, n: int) -> list[RunData]:
    """Runs with the same mean map; in each another ring moves up on one side and down on the other, and no box as a whole."""
    rng = np.random.default_rng(0)
    row, _ = np.nonzero(he_depth1_mask())
    ring, side = np.abs(IETA[row]), np.sign(IETA[row])
    rate = np.array([RING_LAMBDA[int(r)] for r in ring]) * np.exp(0.08 * rng.standard_normal(len(row)))
    stream = []
    for k in range(runs):
        moving = 1 + 0.1 * rng.standard_normal(n)[:, None] * np.where(ring == 19 + k, side, 0)
        events = np.clip(1250 * np.exp(0.2 * rng.standard_normal(n)), 600, 2600).astype(np.int64)
        pileup = np.linspace(7, 3, n)
        p = 1 - (1 + pileup[:, None] * rate * moving / K) ** -K
        counts = np.zeros((n, 1, 64, 72), dtype=np.float32)
        counts[:, 0, he_depth1_mask()] = rng.binomial(events[:, None], p)
        lumisection = np.arange(1, n + 1)
        maps = Maps(counts, events.astype(np.float64), pileup, lumisection)
        stream.append(RunData(FIRST_RUN + k, maps, assign(lumisection)))
    return stream


def test_where_the_closed_forms_are_right_the_network_costs_a_probe() -> None:
    stream = make_stream(6, drift=0.004, seed=5, n=400)
    hybrid = make_strategy("hybrid", geometry=Geometry(1), seed=0, recipe=RECIPE, memory_bytes=1_000_000, device="cpu")
    assert isinstance(hybrid, Hybrid)
    steps = [len(hybrid.learn(k, run, reader(stream)).loss) for k, run in enumerate(stream)]
    assert steps[1] == RECIPE.steps
    assert steps[-1] == math.ceil(PROBE * RECIPE.steps)
    # Of 360 test lumisections, .05 is two binomial deviations.
    assert accuracy(hybrid, stream) > accuracy(learnt("statistical", stream), stream) - 0.05


def test_where_rings_move_against_each_other_the_pool_is_right_and_the_statistics_are_not() -> None:
    stream = rings_against_each_other(4, 400)
    hybrid = learnt("hybrid", stream)
    assert isinstance(hybrid, Hybrid)
    assert accuracy(hybrid, stream) > accuracy(learnt("statistical", stream), stream) + 0.1
    assert accuracy(hybrid, stream) > accuracy(learnt("replay", stream), stream) - 0.05


def test_closed_forms_and_exemplars_share_one_budget_and_a_resume_has_the_same_bits() -> None:
    stream = make_stream(5, drift=0.03, seed=6, n=100)
    recipe = replace(RECIPE, steps=1)
    for budget in (6_000, 60_000, 1_000_000):
        hybrid, resumed = (
            make_strategy("hybrid", geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=budget, device="cpu")
            for _ in range(2)
        )
        assert isinstance(hybrid, Hybrid)
        for experience, run in enumerate(stream):
            hybrid.learn(experience, run, reader(stream))
            assert hybrid.memory_bytes() <= budget
            if experience == 3:
                resumed.restore(hybrid.state())
                assert resumed.memory_bytes() == hybrid.memory_bytes()
        resumed.learn(4, stream[4], reader(stream))
        for name, array in hybrid.state().items():
            np.testing.assert_array_equal(resumed.state()[name], array)
        assert hybrid.statistical.classes == 5
    assert hybrid.memory_bytes() > 0.6e6


def test_a_state_of_the_earlier_hybrid_is_refused_with_what_to_do() -> None:
    stream = make_stream(2, drift=0.03, seed=6, n=100)
    hybrid = learnt("hybrid", stream)
    earlier = {name: array for name, array in hybrid.state().items() if not name.startswith(("parts.", "chosen."))}
    with pytest.raises(StateError, match="start a new state"):
        learnt("hybrid", []).restore(earlier)
