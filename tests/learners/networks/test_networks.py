"""Every network keeps old rows of its head, reads channels in their places, and scores a lumisection alike in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dqmstream.errors import InputError
from dqmstream.learners.gradient.flops import step_flops
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.linear import Linear
from dqmstream.learners.networks.moe.config import ROUTER_NAMES
from dqmstream.learners.networks.recipe import CNN_RECIPE, READOUTS, STUDY_RECIPE, Recipe
from dqmstream.learners.networks.registry import BACKBONES, BUILT_IN
from dqmstream.learners.networks.vit import READOUTS as READ
from dqmstream.learners.networks.vit import ViT
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.lumisection import IETA, IPHI, Geometry, he_depth1_mask, readout_box
from tests.learners.streams import make_stream

SMALL = {
    "moe_vit": Recipe(dim=16, depth=2, heads=2, experts=4),
    "vit": Recipe(model="vit", dim=16, depth=2, heads=2),
    "cnn": replace(CNN_RECIPE, cnn_widths=(4, 6)),
    "linear": Recipe(model="linear"),
    "quadratic": Recipe(model="quadratic", products=6),
    "pooled": Recipe(model="pooled", dim=16),
    "study_vit": replace(STUDY_RECIPE, dim=16, depth=1, heads=2),
    "depthvit": Recipe(model="depthvit", dim=8, depth=2, heads=2),
    **{name: Recipe(model=name) for name in BACKBONES},
}
ENSEMBLE = "ensemble:cnn+resnet+moe_vit"
IN_PLACE = ("moe_vit", "vit", "cnn", "linear", "depthvit", *BACKBONES)
"""Networks whose head sees every channel in its place."""


def make(model: str, depths: int = 1, **changes: object) -> Network:
    torch.manual_seed(0)
    return build(np.repeat(he_depth1_mask()[None], depths, axis=0), replace(SMALL[model], **changes)).eval()


def test_networks_are_those_that_a_recipe_may_name() -> None:
    assert set(BUILT_IN) == set(SMALL)
    with pytest.raises(InputError, match="no network 'alexnet'; choose one of moe_vit, vit, cnn"):
        Recipe(model="alexnet")
    assert make_strategy("cnn", geometry=Geometry(1), seed=0, recipe=Recipe(steps=3)).recipe == Recipe(model="cnn", steps=3)
    assert make_strategy("cnn", geometry=Geometry(1), seed=0).recipe == CNN_RECIPE


@pytest.mark.parametrize("name", tuple(BUILT_IN))
def test_a_lumisection_is_scored_the_same_alone_and_in_any_batch(name: str) -> None:
    model = make(name)
    model.grow(3)
    torch.nn.init.normal_(model.heads()[0].weight)
    x = torch.randn(9, 932)
    whole = model(x)
    for i in range(9):
        torch.testing.assert_close(model(x[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depths", [1, 3])
@pytest.mark.parametrize("name", tuple(BUILT_IN))
@pytest.mark.parametrize("linear_skip", [True, False])
def test_head_grows_without_touching_old_rows(name: str, depths: int, linear_skip: bool) -> None:
    model = make(name, depths, linear_skip=linear_skip)
    assert len(model.heads()) == 1 + (linear_skip and name not in ("linear", "quadratic", "pooled", "study_vit"))
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
    # A product with more rows may sum in another order, and these logits are sums of two thousand terms.
    torch.testing.assert_close(after[:, :2], before, rtol=1e-5, atol=1e-3)
    assert not after[:, 2:].any()
    with pytest.raises(ValueError, match="cannot shrink"):
        model.grow(3)


@pytest.mark.parametrize("name", IN_PLACE)
def test_each_channel_reaches_the_head_in_its_place(name: str) -> None:
    model = make(name, linear_skip=False)
    model.grow(1)
    torch.nn.init.normal_(model.heads()[0].weight)
    one_channel = torch.eye(932)[::100]
    scores = model(one_channel)[:, 0] - model(torch.zeros(1, 932))[0, 0]
    assert len(torch.unique(scores)) == len(scores)
    assert (scores.abs() > 1e-4).all()


@pytest.mark.parametrize("name", ["moe_vit", "vit", "linear"])
def test_products_tell_apart_what_only_moves_together(name: str) -> None:
    """Two signs of one pattern have the same score, another size has another, and old rows stay as the head grows."""
    model = make(name, products=5, linear_skip=False)
    assert isinstance(model, ViT | Linear) and model.products is not None and model.product_head is not None
    assert len(model.heads()) == 2
    model.grow(2)
    assert not model(torch.randn(3, 932)).any(), "a new head says nothing"
    x_BF = torch.randn(4, model.products.u_KF.shape[1])
    torch.testing.assert_close(model.products(-x_BF), model.products(x_BF))
    torch.testing.assert_close(model.products(2 * x_BF), 4 * model.products(x_BF))
    torch.nn.init.normal_(model.product_head.weight)
    x = torch.randn(4, 932)
    before = model(x)
    model.grow(3)
    torch.testing.assert_close(model(x)[:, :2], before)
    assert not model(x)[:, 2].any()


def test_the_quadratic_network_sees_no_mean() -> None:
    model = make("quadratic")
    model.grow(2)
    torch.nn.init.normal_(model.heads()[0].weight)
    x = torch.randn(4, 932)
    torch.testing.assert_close(model(-x), model(x))
    with pytest.raises(InputError, match="give products"):
        Recipe(model="quadratic")


def test_only_tokens_with_live_channels_are_computed() -> None:
    model = make("moe_vit")
    assert isinstance(model, ViT)
    assert len(model.position_ND) == 32


@pytest.mark.parametrize("depths", [1, 2])
def test_patches_are_the_readout_boxes(depths: int) -> None:
    """With 32 x 4 cells and a shift of 2 a channel changes the token of its box alone, also across the end of iphi."""
    model = make("moe_vit", depths, patch=(32, 4), patch_shift=2)
    assert isinstance(model, ViT)
    assert len(model.position_ND) == 36
    _, row, column = np.nonzero(np.repeat(he_depth1_mask()[None], depths, axis=0))
    moved = (model.tokens(torch.eye(model.channels)) - model.tokens(torch.zeros(1, model.channels))).abs().sum(dim=-1) > 1e-6
    assert (moved.sum(dim=1) == 1).all()
    token = moved.float().argmax(dim=1).numpy()
    box = readout_box(IETA[row], IPHI[column])
    assert len(set(zip(token, box, strict=True))) == 36


def test_tokens_are_a_convolution_by_patches() -> None:
    """Tokens are what timm's patch embedding gives for the whole map."""
    model = make("moe_vit", 2)
    assert isinstance(model, ViT)
    residuals = torch.randn(3, model.channels)
    kernel = model.tokens.embed.weight.view(16, 2, 8, 9)
    maps = torch.nn.functional.conv2d(model.to_map(residuals), kernel, model.tokens.embed.bias, stride=(8, 9)).flatten(2)
    live = torch.from_numpy(np.flatnonzero(he_depth1_mask().reshape(8, 8, 8, 9).any(axis=(1, 3)).ravel()))
    torch.testing.assert_close(model.tokens(residuals), maps[:, :, live].transpose(1, 2))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("router", ROUTER_NAMES)
def test_a_recipe_makes_any_transformer(readout: str, router: str) -> None:
    model = make(
        "moe_vit", readout=readout, router=router, shared_expert=True, depth=3, moe_blocks=(0, 2, 7), linear_skip=False
    )
    model.grow(2)
    assert isinstance(model, ViT)
    assert len(model.routers()) == 2
    assert model.head.weight.shape[1] == (32 * 16 if readout == "tokens" else 16)
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(6, 932)
    whole = model(x)
    torch.testing.assert_close(model(x[4:5]), whole[4:5], rtol=1e-4, atol=1e-4)
    assert (whole.std(dim=0) > 0).all()


def test_readouts_are_those_that_a_recipe_may_name() -> None:
    assert set(READ) == set(READOUTS)


@pytest.mark.parametrize("shared_expert", [True, False])
def test_a_plain_transformer_has_the_operations_of_the_mixture(shared_expert: bool) -> None:
    """Except for the router's product."""
    recipe = replace(SMALL["moe_vit"], dim=64, shared_expert=shared_expert)
    flops = []
    for model in ("moe_vit", "vit"):
        network = build(he_depth1_mask()[None], replace(recipe, model=model))
        network.grow(2)
        flops.append(step_flops(network, 4, 932, torch.device("cpu")))
    router = 3 * 2 * 4 * 32 * 64 * recipe.experts
    assert flops[0] - flops[1] == router


def test_the_study_recipe_is_vit_base_on_scaled_counts() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("vit_base_patch16_224", in_chans=1, num_classes=0)
        ours = build(np.ones((1, 64, 72), dtype=bool), STUDY_RECIPE)
    shapes = {name: weight.shape for name, weight in theirs.named_parameters()}
    assert {name[12:]: w.shape for name, w in ours.named_parameters() if name.startswith("transformer.")} == shapes
    assert sum(weight.numel() for weight in ours.parameters()) == sum(shape.numel() for shape in shapes.values())
    maps = make_stream(1, drift=0.0, n=60)[0].maps
    reference = Reference.fit(maps)
    scaled = make("study_vit").inputs(reference, maps.counts[:, reference.live])
    assert scaled.dtype == np.float32
    assert scaled.min() >= 0
    assert 0.9 < scaled.max() < 3
    ratio = scaled / maps.counts[:, reference.live]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_convolutions_are_periodic_in_iphi() -> None:
    """A map rotated by the cells of one output column gives the same features, rotated by one column."""
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
