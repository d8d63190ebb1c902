"""Counted floating-point operations agree with counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dqmstream.learners.gradient.flops import step_flops
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.config import MoEConfig
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.recipe import CNN_RECIPE, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

CPU = torch.device("cpu")


def test_a_linear_layer() -> None:
    # Forward pass and gradient of the weight; the gradient of the input is not needed.
    assert step_flops(nn.Linear(6, 3), 5, 6, CPU) == 2 * (2 * 5 * 6 * 3)
    # The second layer also computes the gradient of its input.
    assert step_flops(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 4)), 5, 6, CPU) == 2 * (2 * 5 * 6 * 3) + 3 * (2 * 5 * 3 * 4)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (4, 3)])
def test_a_mixture_of_experts(experts: int, top_k: int) -> None:
    tokens, width, hidden = 10, 12, 20
    router, layer = 2 * tokens * width * experts, 2 * tokens * top_k * width * hidden
    # Router and first layer: forward and weights; second layer: the gradient of its input too.
    by_hand = 2 * router + 2 * layer + 3 * layer
    assert step_flops(MoE(width, hidden, config=MoEConfig(experts=experts, top_k=top_k)), tokens, width, CPU) == by_hand


def test_convolutions() -> None:
    model = build(he_depth1_mask()[None], replace(CNN_RECIPE, cnn_widths=(4, 6)))
    model.grow(2)
    # 26 rows are near a live channel; the convolutions give maps of 13 x 36 and 7 x 18.
    first, second, head = 2 * 9 * 4 * 13 * 36, 2 * 9 * 4 * 6 * 7 * 18, 2 * 6 * 7 * 18 * 2
    assert step_flops(model, 5, 932, CPU) == 5 * (2 * first + 3 * second + 3 * head)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolutions_in_groups(groups: int) -> None:
    """The first layer needs no gradient of its input; a transposed convolution counts by its input places."""
    flat = nn.Unflatten(1, (8, 4, 4))
    one = 2 * 8 * 8 * 9 * 16 / groups
    first, second = (nn.Conv2d(8, 8, 3, padding=1, groups=groups) for _ in range(2))
    assert step_flops(nn.Sequential(flat, first, second), 3, 128, CPU) == 3 * 5 * one
    wider = nn.ConvTranspose2d(8, 8, 3, stride=2, groups=groups)
    assert step_flops(nn.Sequential(flat, first, wider), 3, 128, CPU) == 3 * 5 * one


def test_counting_changes_no_weights_gradients_or_random_state() -> None:
    model = build(he_depth1_mask()[None], Recipe(dim=16, depth=2, heads=2, experts=4))
    model.grow(2)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    assert step_flops(model, 4, 932, CPU) == 2 * step_flops(model, 2, 932, CPU)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_training_costs_its_steps_and_the_methods_further_passes() -> None:
    recipe = Recipe(dim=16, depth=1, heads=2, moe_blocks=(), steps=3, batch=8, fisher_samples=4)
    stream = make_stream(2, drift=0.0, n=100)
    flops = {}
    for name, changed in (("naive", recipe), ("longer", replace(recipe, steps=5)), ("ewc", recipe)):
        made = "naive" if name == "longer" else name
        strategy = make_strategy(made, geometry=Geometry(1), seed=0, recipe=changed, device="cpu")
        flops[name] = [strategy.learn(i, run, reader(stream)).flops for i, run in enumerate(stream)][1]
    step = (flops["longer"] - flops["naive"]) / 2
    assert flops["naive"] == pytest.approx(3 * step + strategy.reference.response_flops(200))
    assert flops["ewc"] - flops["naive"] == pytest.approx(step * 4 / 8)


def test_closed_forms_count_by_their_formula() -> None:
    stream = make_stream(2, drift=0.0, n=100)
    for name, beside in (("ring_means", 0), ("naive_bayes", 4), ("gain_map", 7)):
        strategy = make_strategy(name, geometry=Geometry(1), seed=0)
        first, second = (strategy.learn(i, run, reader(stream)).flops for i, run in enumerate(stream))
        reference = strategy.reference
        assert second == reference.response_flops(100) + beside * 100 * 932
        assert first == second + reference.fit_flops(100)
        # Two conditions: cells of |ieta| 19-23 and of 26-28, a product with 36 boxes each.
        cells = 2 * (71 + 71 + 36 + 36 + 36) + 2 * 3 * 36
        assert reference.response_flops(1) == 2 * cells * 36 + 12 * 932
        assert np.isfinite(first)
