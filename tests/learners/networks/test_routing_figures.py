"""How routers and parts of a batch take part in a training: what is recorded, what is resumed, what adds up."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from dqmstream.errors import StateError
from dqmstream.learners.checks import check_resumes_to_the_same_bits
from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.routing_figures import RUNS, RoutingFigures
from dqmstream.learners.networks.recipe import STUDY_RECIPE, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

CPU = torch.device("cpu")
TINY = Recipe(dim=16, depth=2, heads=2, experts=4, steps=4, batch=32)


def strategy(recipe: Recipe, name: str = "naive", seed: int = 0) -> DeepStrategy:
    made = make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=400_000, device="cpu")
    assert isinstance(made, DeepStrategy)
    return made


@pytest.mark.parametrize("changes", [{"router": "balanced", "micro_batch": 9}, {"router": "soft"}], ids=str)
def test_any_router_resumes_to_the_same_bits(changes: dict[str, object]) -> None:
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
    # The three trade their names, so every token changes its first expert but those of the fourth.
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


@pytest.mark.parametrize(
    ("recipe", "inputs"),
    [
        (replace(STUDY_RECIPE, dim=16, depth=1, heads=2, batch=10, micro_batch=4), "scaled counts"),
        (replace(TINY, model="vit", batch=10, micro_batch=3, noise=0.0), "residuals"),
        (replace(TINY, model="cnn", batch=10, micro_batch=7, noise=0.0), "residuals"),
    ],
    ids=lambda value: getattr(value, "model", value),
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(recipe: Recipe, inputs: str) -> None:
    """Also of what a method adds to the loss, once a batch; and the loss that is recorded is the mean over the batch."""
    rows = torch.rand(30, 932) if inputs == "scaled counts" else torch.randn(30, 932)

    class Penalty(Method):
        name = "penalty"

        def before_backward(self, template: RunTemplate, **kwargs: object) -> None:
            template.loss = template.loss + 3 * sum(head.weight.square().sum() for head in template.model.heads())

        def before_update(self, template: RunTemplate, **kwargs: object) -> None:
            gradients.append({name: weight.grad for name, weight in template.model.named_parameters()})

    gradients: list[dict[str, torch.Tensor | None]] = []
    losses = []
    for one in (recipe, replace(recipe, micro_batch=0)):
        model = _with_head(one)
        lesson = Lesson({0: rows[:15].numpy(), 1: rows[15:].numpy()}, one, 1, CPU, torch.Generator().manual_seed(1))
        template = RunTemplate(model=model, recipe=one, device=CPU, plugin=Penalty(one, 0, 0))
        template.teach(lesson)
        losses.append(template.losses[0])
    torch.testing.assert_close(losses[0], losses[1])
    for name, whole in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], whole, rtol=1e-4, atol=1e-5)
    assert all(gradient is not None and gradient.any() for name, gradient in gradients[0].items() if "qkv" not in name)


def _with_head(recipe: Recipe) -> Network:
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], recipe)
    model.grow(2)
    for head in model.heads():
        torch.nn.init.normal_(head.weight, std=0.1)
    return model


def test_the_study_recipe_trains() -> None:
    """Shrunk: what distinguishes it is the way of the data, which are scaled counts, and that its rate stays as it is."""
    recipe = replace(STUDY_RECIPE, dim=16, depth=1, heads=2, batch=8, micro_batch=3, steps=3)
    stream = make_stream(2, drift=0.03, n=100)
    learner = strategy(recipe)
    for experience, run in enumerate(stream):
        log_ = learner.learn(experience, run, reader(stream))
    assert len(log_.loss) == 3
    assert log_.loss[0] == pytest.approx(log(2), abs=1e-5)
    assert learner.scores(stream[0].maps).shape == (100, 2)
    rates: list[list[float]] = []

    class Looking(Naive):
        def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            rates.append([group["lr"] for group in strategy.optimizer.param_groups])

    template = RunTemplate(model=_with_head(recipe), recipe=recipe, device=CPU, plugin=Looking(recipe, 0, 0))
    rows = np.random.default_rng(0).random((9, 932), dtype=np.float32)
    template.teach(Lesson({0: rows, 1: rows}, recipe, 3, CPU, torch.Generator()))
    assert rates == 3 * [[1e-4, 1e-4]]
