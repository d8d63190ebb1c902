"""Routing figures: load and drift are recorded after each run, resumed to the same bits, and bounded in bytes."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from dqmstream.errors import StateError
from dqmstream.learners.checks import check_resumes_to_the_same_bits
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.routing_figures import RUNS, RoutingFigures
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

TINY = Recipe(dim=16, depth=2, heads=2, experts=4, steps=4, batch=32)


def strategy(recipe: Recipe, name: str = "naive", seed: int = 0) -> DeepStrategy:
    made = make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=400_000, device="cpu")
    assert isinstance(made, DeepStrategy)
    return made


@pytest.mark.parametrize("changes", [{"router": "balanced", "micro_batch": 9}, {"router": "soft"}], ids=str)
def test_routers_resume_to_the_same_bits(changes: dict[str, object]) -> None:
    recipe = replace(TINY, depth=4, **changes)  # type: ignore[arg-type]
    check_resumes_to_the_same_bits(lambda seed: strategy(recipe, seed=seed), make_stream(4, drift=0.03, seed=1))


def test_load_and_drift_of_each_past_run_are_recorded() -> None:
    stream = make_stream(4, drift=0.03, n=100)
    learner = strategy(replace(TINY, depth=4, lr=1e-2, steps=10))
    notes = [learner.learn(experience, run, reader(stream)).notes for experience, run in enumerate(stream)]
    assert "expert_load.0" not in notes[0]
    for past, note in zip(([], [1.0], [1.0, 2.0]), notes[1:], strict=True):
        assert note["routing_drift_since"] == past
        for mixture in ("0", "1"):
            load, drift = note[f"expert_load.{mixture}"], note[f"routing_drift.{mixture}"]
            assert isinstance(load, list)
            assert isinstance(drift, list)
            assert sum(load) == pytest.approx(1)
            assert note[f"load_entropy.{mixture}"] == pytest.approx(-sum(part * log(part) for part in load if part))
            assert len(drift) == len(past)
    assert max(notes[3]["routing_drift.1"]) > 0
    assert learner.state_bytes() == 3 * 2 * 16 * 32


def test_a_dead_expert_and_a_moved_token_are_counted() -> None:
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], TINY)
    model.grow(2)
    (router,) = model.routers()
    routing = RoutingFigures(seed=0)
    first = routing.measure(model, 1)
    assert routing.measure(model, 2)["routing_drift.0"] == [0.0]
    with torch.no_grad():
        router.weight[[0, 1, 2]] = router.weight[[1, 2, 0]]
    moved = routing.measure(model, 3)
    assert first["dead_experts.0"] == moved["dead_experts.0"] == 0
    # Three experts exchange their router rows, so all tokens change their first expert but those of the fourth.
    shares: list[torch.Tensor] = []
    router.register_forward_hook(lambda module, given, made: shares.append(module.shares(given[0])))
    rows = torch.randn(16, 932, generator=torch.Generator().manual_seed(0))
    model.eval()(rows)
    assert moved["routing_drift.0"] == pytest.approx([float((shares[0].argmax(dim=-1) != 3).float().mean())] * 2)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[2] = 1.0
        model.blocks[1].norm2.bias.fill_(1.0)  # type: ignore[union-attr, index]
        model.blocks[1].norm2.weight.fill_(0.01)  # type: ignore[union-attr, index]
        router.weight[3] = 0.9
    assert routing.measure(model, 4)["dead_experts.0"] == 2


def test_routing_of_many_runs_is_bounded_and_a_damaged_one_refused() -> None:
    model = build(he_depth1_mask()[None], TINY)
    model.grow(2)
    routing = RoutingFigures(seed=0)
    for experience in range(1, 3 * RUNS):
        routing.measure(model, experience)
        assert routing.nbytes() <= RUNS * 16 * 32
    kept = routing.state()["runs"]
    assert kept[0] == 1
    assert kept[-1] == 3 * RUNS - 1
    assert RUNS // 2 <= len(kept) <= RUNS
    with pytest.raises(StateError, match="routing of shape"):
        RoutingFigures(seed=0).restore(routing.state() | {"runs": kept[1:]}, model)
