"""Every network keeps the rows of its head, sees every channel in its place, and scores a lumisection whatever is beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dqmstream.errors import InputError
from dqmstream.learners.model import MoEViT
from dqmstream.learners.network import Network
from dqmstream.learners.networks import NETWORKS, build
from dqmstream.learners.recipe import CNN, MODELS, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry, he_depth1_mask

SMALL = {"moe_vit": Recipe(dim=16, depth=2, heads=2, experts=4), "cnn": replace(CNN, cnn_widths=(4, 6))}


def make(model: str, depths: int = 1, **changes: bool) -> Network:
    torch.manual_seed(0)
    return build(np.repeat(he_depth1_mask()[None], depths, axis=0), replace(SMALL[model], **changes)).eval()


def test_networks_are_those_that_a_recipe_may_name() -> None:
    assert set(NETWORKS) == set(MODELS) == set(SMALL)
    with pytest.raises(InputError, match="no network 'resnet'; choose one of moe_vit, cnn"):
        Recipe(model="resnet")
    assert make_strategy("cnn", geometry=Geometry(1), seed=0, recipe=Recipe(steps=3)).recipe == Recipe(model="cnn", steps=3)
    assert make_strategy("cnn", geometry=Geometry(1), seed=0).recipe == CNN


@pytest.mark.parametrize("name", MODELS)
def test_a_lumisection_is_scored_the_same_alone_and_in_any_batch(name: str) -> None:
    model = make(name)
    model.grow(3)
    torch.nn.init.normal_(model.heads()[0].weight)
    x = torch.randn(9, 932)
    whole = model(x)
    for i in range(9):
        torch.testing.assert_close(model(x[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depths", [1, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("linear_skip", [True, False])
def test_head_grows_without_touching_old_rows(name: str, depths: int, linear_skip: bool) -> None:
    model = make(name, depths, linear_skip=linear_skip)
    assert len(model.heads()) == 1 + linear_skip
    model.grow(2)
    x = torch.randn(4, model.channels)
    for head in model.heads():
        torch.nn.init.normal_(head.weight)
    before, weights = model(x), [head.weight.clone() for head in model.heads()]
    model.grow(5)
    after = model(x)
    assert model.classes == 5
    assert after.shape == (4, 5)
    for head, weight in zip(model.heads(), weights, strict=True):
        assert torch.equal(head.weight[:2], weight)
    # A product with more rows may add up in another order, and these logits are sums of two thousand terms.
    torch.testing.assert_close(after[:, :2], before, rtol=1e-5, atol=1e-3)
    assert not after[:, 2:].any()
    with pytest.raises(ValueError, match="cannot shrink"):
        model.grow(3)


@pytest.mark.parametrize("name", MODELS)
def test_each_channel_reaches_the_head_in_its_place(name: str) -> None:
    model = make(name, linear_skip=False)
    model.grow(1)
    torch.nn.init.normal_(model.heads()[0].weight)
    one_channel = torch.eye(932)[::100]
    scores = model(one_channel)[:, 0] - model(torch.zeros(1, 932))[0, 0]
    assert len(torch.unique(scores)) == len(scores)
    assert (scores.abs() > 1e-4).all()


def test_only_tokens_with_live_channels_are_computed() -> None:
    model = make("moe_vit")
    assert isinstance(model, MoEViT)
    assert len(model.position_ND) == 32


def test_convolutions_go_round_in_iphi() -> None:
    """A map turned by the cells of one output column gives the same features, turned by one column."""
    torch.manual_seed(0)
    model = build(np.ones((1, 64, 72), dtype=bool), SMALL["cnn"]).eval()
    model.grow(1)
    seen: list[Tensor] = []
    model.convolutions[-1].register_forward_hook(lambda module, given, features: seen.append(features))
    maps = torch.randn(2, 64, 72)
    for shift in (0, 4):
        model(maps.roll(shift, dims=2).flatten(1))
    torch.testing.assert_close(seen[1], seen[0].roll(1, dims=3))
    assert seen[0].shape == (2, 6, 16, 18)
