"""Mixtures may gain experts between trainings: what they compute hardly changes then, and a resume gives the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks import check_resumes_to_the_same_bits, check_strategy
from dqmstream.learners.gradient.flops import step_flops
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.moe.growth import SHARE, split_busiest
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.moe.routing_figures import Routing, look_at_routers
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import build
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

CPU = torch.device("cpu")
BRIEF = Recipe(dim=16, depth=2, heads=2, experts=4, steps=11, batch=32, fisher_samples=4, grow_experts=1, most_experts=6)


def make(recipe: Recipe, name: str = "replay", seed: int = 0) -> DeepStrategy:
    made = make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=400_000, device="cpu")
    assert isinstance(made, DeepStrategy)
    return made


def strong(recipe: Recipe) -> Network:
    """A network whose experts differ, and whose head and routers have an opinion."""
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], recipe)
    model.grow(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "router" in name or "experts" in name or "head" in name:
                weight.normal_(std=0.3)
        for router in model.routers():
            for bias_E in (buffer for name, buffer in router.named_buffers() if name == "bias_E"):
                bias_E.copy_(torch.linspace(-0.05, 0.05, len(bias_E)))
    return model.eval()


@torch.no_grad()
def said(model: Network) -> Tensor:
    """Logits of some lumisections."""
    logits_BC: Tensor = model(torch.randn(40, 932, generator=torch.Generator().manual_seed(5)))
    return logits_BC


def changed(before: Tensor, after: Tensor) -> float:
    """Deviation of one from the other, over the spread of the first."""
    return float((after - before).square().mean().sqrt() / before.std())


@pytest.mark.parametrize("changes", [{}, {"top_k": 1}, {"top_k": 3, "shared_expert": True}, {"router": "balanced"}], ids=str)
def test_a_split_changes_what_the_network_says_by_the_clones_own_part_alone(changes: dict[str, object]) -> None:
    """A clone that took no notice of whom it comes from would change it by a quarter of its spread, however small that is."""
    for share, bound in ((0.0, 1e-6), (SHARE, 0.2 if changes == {"top_k": 1} else 0.1)):
        model = strong(replace(BRIEF, depth=4, **changes))  # type: ignore[arg-type]
        before = said(model)
        split_busiest(model, 0, torch.Generator().manual_seed(1), share)
        assert [len(router.weight) for router in model.routers()] == [5, 5]
        assert changed(before, said(model)) < bound
        for router in model.routers():
            router.family_E.copy_(torch.arange(5))
        assert changes == {"top_k": 1} or changed(before, said(model)) > 0.2


def test_a_split_leaves_the_tokens_of_one_side_exactly_and_the_others_nearly_as_they_were() -> None:
    torch.manual_seed(0)
    moe = MoE(16, 24, recipe=BRIEF).eval()
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.5)
        x_BND, towards_D = torch.randn(20, 30, 16), 0.01 * torch.randn(16)
        share_BNE, before = moe.router.shares(x_BND), moe(x_BND)
        busiest = int(share_BNE.sum(dim=(0, 1)).argmax())
        moe.split(busiest, towards_D)
        after, new_BNE = moe(x_BND), moe.router.shares(x_BND)
        moe.experts.computation = "dense"
        torch.testing.assert_close(moe(x_BND), after)
    clones = x_BND @ towards_D > 0
    torch.testing.assert_close(after[~clones], before[~clones], rtol=1e-5, atol=1e-5)
    had, has, is_clones = share_BNE[..., busiest] > 0, new_BNE[..., busiest] > 0, new_BNE[..., 4] > 0
    joined = ~had & is_clones  # for whom the family was just behind
    assert joined.float().mean() < 0.02
    assert changed(before[clones & ~joined], after[clones & ~joined]) < 0.02
    assert torch.equal(is_clones & ~joined, had & clones)
    assert torch.equal(has, had & ~clones)
    assert ((new_BNE > 0).sum(dim=-1) == 2).all()
    for weight in moe.experts.parameters():
        assert torch.equal(weight[busiest], weight[4])


def test_the_busiest_shares_its_load_and_few_tokens_count_as_drifted() -> None:
    model = strong(replace(BRIEF, depth=4))
    routing = Routing(seed=3)
    before = routing.look(model, 1)
    notes = split_busiest(model, 3, torch.Generator().manual_seed(2))
    after = routing.look(model, 2)
    for m in ("0", "1"):
        old, new = before[f"expert_load.{m}"], after[f"expert_load.{m}"]
        assert isinstance(old, list) and isinstance(new, list) and len(new) == 5
        busiest = int(notes[f"expert_split.{m}"])
        assert old[busiest] == max(old)
        assert new[busiest] + new[4] == pytest.approx(old[busiest], abs=0.02)
        assert min(new[busiest], new[4]) > 0.2 * old[busiest]
        assert after[f"dead_experts.{m}"] == 0
        (moved,) = after[f"routing_drift.{m}"]  # type: ignore[misc]
        assert moved < 0.05
    firsts = [of.share_BNE.argmax(dim=-1) for of in look_at_routers(model, 3)]
    assert all((first == 4).float().mean() > 0.1 for first in firsts)


def test_an_expert_more_costs_the_router_alone() -> None:
    model = build(he_depth1_mask()[None], BRIEF)
    model.grow(2)
    before = step_flops(model, 3, 932, CPU)
    split_busiest(model, 0, torch.Generator())
    # 32 tokens a lumisection; forward, the weight's gradient and the token's.
    assert step_flops(model, 3, 932, CPU) - before == 3 * (2 * 3 * 32 * 16)


def test_growing_mixtures_whose_training_settles_keep_the_contract() -> None:
    recipe = replace(BRIEF, router="balanced", ema=0.8, patience=1, temperature=True)
    check_strategy(lambda seed: make(recipe, seed=seed), 400_000)


@pytest.mark.parametrize(("name", "changes"), [("replay", {"freeze_router": 2}), ("ewc", {"top_k": 1}), ("joint", {})], ids=str)
def test_growing_mixtures_resume_to_the_same_bits(name: str, changes: dict[str, object]) -> None:
    recipe = replace(BRIEF, most_experts=5, **changes)  # type: ignore[arg-type]
    check_resumes_to_the_same_bits(lambda seed: make(recipe, name, seed), make_stream(4, drift=0.03, seed=1))


def test_experts_grow_between_trainings_and_both_halves_go_on_learning() -> None:
    stream = make_stream(5, drift=0.03, n=100)
    learner = make(replace(BRIEF, grow_experts=2, steps=20))
    sizes = []
    for experience, run in enumerate(stream):
        log = learner.learn(experience, run, reader(stream))
        state = learner.state()
        sizes.append(len(state["model.blocks.1.mlp.router.weight"]))
        assert ("expert_split.0" in log.notes) == (experience == 3)
        if experience:
            assert len(log.notes["expert_load.0"]) == sizes[-1]  # type: ignore[arg-type]
    assert sizes == [4, 4, 4, 5, 5]
    origin = int(state["model.blocks.1.mlp.router.family_E"][4])
    for name in ("up_EHD", "down_EDH", "down_bias_ED"):
        weight = state[f"model.blocks.1.mlp.experts.{name}"]
        assert (weight[origin] != weight[4]).any()
    assert np.isfinite(learner.scores(stream[0].part(Part.TEST))).all()


def test_a_state_whose_experts_cannot_be_is_refused() -> None:
    stream = make_stream(4, drift=0.03, n=100)
    learner = make(BRIEF)
    for experience, run in enumerate(stream):
        learner.learn(experience, run, reader(stream))
    state = learner.state()
    make(BRIEF).restore(state)
    family = "model.blocks.1.mlp.router.family_E"
    assert len(state[family]) == 6
    for damaged in ([0, 1, 2, 3, 6, 0], [0, 1, 2, 3, -1, 0], [0, 0, 2, 3, 1, 0], [0, 1, 2, 3, 0]):
        with pytest.raises(StateError):
            make(BRIEF).restore(state | {family: np.array(damaged)})
    with pytest.raises(StateError, match="expert 6 of 6"):
        make(BRIEF).restore(state | {"routing.first": np.full_like(state["routing.first"], 6)})
    for missing in (name for name in state if ".mlp." in name):
        with pytest.raises(StateError):
            make(BRIEF).restore({name: array for name, array in state.items() if name != missing})


def test_recipes_say_how_many_experts_there_are() -> None:
    assert [Recipe().experts_at(classes) for classes in (0, 2, 50)] == [8, 8, 8]
    growing = Recipe(experts=4, grow_experts=2, most_experts=6)
    assert [growing.experts_at(classes) for classes in range(10)] == [4, 4, 4, 4, 5, 5, 6, 6, 6, 6]
    for changes, named in (
        ({"grow_experts": -1}, "grow_experts -1 is not in 0.."),
        ({"most_experts": 3}, r"most_experts 3 is not in 4\.\.256"),
        ({"most_experts": 257}, "most_experts 257"),
        ({"router": "soft"}, "choose router top_k or balanced"),
    ):
        with pytest.raises(InputError, match=named):
            growing.changed(changes)
    assert Recipe(experts=32).experts_at(3) == 32
