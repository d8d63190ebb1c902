"""hybrid is the closed form bit for bit where that is right; elsewhere held-out lumisections give the network weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import log_softmax

from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.gradient.hybrid import Hybrid
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.saved_state import STAMP
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


def test_where_the_closed_form_is_right_hybrid_is_the_closed_form() -> None:
    stream = make_stream(4, drift=0.004, seed=5, n=400)
    hybrid, alone = learnt("hybrid", stream), learnt("statistical", stream)
    assert isinstance(hybrid, Hybrid)
    assert hybrid.weights[1] == 0
    for run in stream:
        test = run.part(Part.TEST)
        np.testing.assert_array_equal(hybrid.scores(test), hybrid.weights[0] * log_softmax(alone.scores(test), axis=1))


def test_the_network_corrects_the_closed_form_on_runs_that_differ_by_what_it_does_not_model() -> None:
    stream = rings_against_each_other(4, 400)
    hybrid = learnt("hybrid", stream)
    assert isinstance(hybrid, Hybrid)
    assert hybrid.weights[1] > 0
    assert accuracy(hybrid, stream) > accuracy(learnt("statistical", stream), stream) + 0.1
    assert accuracy(hybrid, stream) > accuracy(learnt("replay", stream), stream) - 0.05


def test_statistics_and_exemplars_share_one_budget() -> None:
    stream = make_stream(3, drift=0.03, seed=6)
    hybrid = learnt("hybrid", stream)
    assert isinstance(hybrid, Hybrid)
    assert 0.6e6 < hybrid.memory_bytes() <= 1_000_000
    assert hybrid.statistical.classes == 3


def test_statistics_take_the_budget_they_need_before_lumisections_are_kept() -> None:
    """So hybrid is not worse than the closed form with the same budget; after a resume the shares are the same."""
    stream = make_stream(8, drift=0.03, seed=6, n=100)
    recipe = replace(RECIPE, steps=1)
    held = []
    for budget in (6_000, 30_000):
        hybrid, resumed, alone = (
            make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=budget, device="cpu")
            for name in ("hybrid", "hybrid", "statistical")
        )
        assert isinstance(hybrid, Hybrid) and isinstance(alone, Statistical)
        for experience, run in enumerate(stream):
            for strategy in (hybrid, alone):
                strategy.learn(experience, run, reader(stream))
            assert hybrid.memory_bytes() <= budget
            for name, array in alone.state().items():
                if name != STAMP:
                    np.testing.assert_array_equal(hybrid.statistical.state()[name], array)
            if experience == 5:
                resumed.restore(hybrid.state())
                assert resumed.memory_bytes() == hybrid.memory_bytes()
        for experience in (6, 7):
            resumed.learn(experience, stream[experience], reader(stream))
        for name, array in hybrid.state().items():
            np.testing.assert_array_equal(resumed.state()[name], array)
        held.append(hybrid.memory_bytes() - hybrid.statistical.memory_bytes())
        assert budget - hybrid.memory_bytes() < 3 * 2 * 932, "what the statistics leave is used"
    assert held[0] == 0 < held[1]
