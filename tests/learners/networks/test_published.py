"""Published families and ensembles train in a strategy, resume to the same bits, and take batches in parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks import assert_same_state
from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate
from dqmstream.learners.maps import RunData
from dqmstream.learners.networks.backbones import build_backbone
from dqmstream.learners.networks.backbones.weights import save_weights
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.ensemble import EnsembleNetwork
from dqmstream.learners.networks.published import PublishedNetwork
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import BACKBONES
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

ENSEMBLE = "ensemble:cnn+moe_vit+resnet"
BRIEF = Recipe(dim=16, depth=2, heads=2, experts=4, steps=3, batch=8, lr=3e-3, dropout=0.1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    return make_stream(3, drift=0.03, n=130)


def make(recipe: Recipe, strategy: str = "replay") -> Strategy:
    return make_strategy(strategy, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=200_000, device="cpu")


def network(recipe: Recipe) -> Network:
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], recipe)
    model.grow(2)
    for head in model.heads():
        torch.nn.init.normal_(head.weight, std=0.1)
    return model


@pytest.mark.parametrize(
    ("model", "size", "strategy"),
    [
        *((name, "tiny", "replay") for name in (*BACKBONES, ENSEMBLE)),
        ("swin", "tiny", "naive"),
        ("efficientnet", "small", "replay"),
    ],
)
def test_resumes_to_the_same_bits(model: str, size: str, strategy: str, runs: list[RunData]) -> None:
    """Also with batch norm, which keeps running statistics, and with dropout."""
    recipe = replace(BRIEF, model=model, size=size)
    unbroken, resumed = make(recipe, strategy), make(recipe, strategy)
    for experience, run in enumerate(runs):
        log = unbroken.learn(experience, run, reader(runs))
        assert np.isfinite(log.loss).all()
        if experience < 2:
            resumed = make(recipe, strategy)
            resumed.restore({name: array.copy() for name, array in unbroken.state().items()})
        else:
            assert resumed.learn(experience, run, reader(runs)) == log
    assert_same_state(resumed, unbroken)
    maps = runs[0].maps.take(np.arange(8))
    scores = unbroken.scores(maps)
    np.testing.assert_array_equal(resumed.scores(maps), scores)
    np.testing.assert_allclose(unbroken.scores(maps.take(np.array([5]))), scores[5:6], rtol=1e-4, atol=1e-4)
    assert any("running_mean" in name for name in unbroken.state()) == (size == "small")
    other = make(replace(recipe, size="tiny" if size == "small" else "small"), strategy)
    with pytest.raises(StateError, match=r"recipe\.size is"):
        other.restore(unbroken.state())


@pytest.mark.parametrize("model", [*BACKBONES, ENSEMBLE])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(model: str) -> None:
    """Without the load-balancing loss of mixtures, which depends on the whole batch."""
    recipe = Recipe(model=model, dim=16, heads=2, experts=4, steps=1, batch=7, micro_batch=3, noise=0.0, aux_weight=0.0)
    rows = np.random.default_rng(0).standard_normal((20, 932), dtype=np.float32)
    gradients, losses = [], []
    for one in (recipe, replace(recipe, micro_batch=0)):
        trained = network(one)
        template = RunTemplate(model=trained, recipe=one, device=CPU, plugin=Method(one, 0, 0))
        template.teach(Lesson({0: rows[:10], 1: rows[10:]}, one, 1, CPU, torch.Generator().manual_seed(1)))
        gradients.append({name: weight.grad for name, weight in trained.named_parameters()})
        losses.append(template.losses[0])
    torch.testing.assert_close(losses[0], losses[1])
    for name, whole in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], whole, rtol=1e-3, atol=1e-5)


def test_members_of_an_ensemble_train_as_if_alone() -> None:
    """A member's gradient is that of its own loss over the number of members; logits are the mean of the members'."""
    recipe = Recipe(model=ENSEMBLE, dim=16, heads=2, experts=4)
    model = network(recipe)
    assert isinstance(model, EnsembleNetwork)
    rows, labels = torch.randn(6, 932), torch.arange(6) % 2
    logits = model(rows)
    torch.testing.assert_close(logits, torch.stack([member(rows) for member in model.members]).mean(dim=0))
    (torch.nn.functional.cross_entropy(logits, labels) + model.auxiliary_loss()).backward()
    together = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert len(model.routers()) == 1
    for number, member in enumerate(model.members):
        member.zero_grad()
        (torch.nn.functional.cross_entropy(member(rows), labels) + member.auxiliary_loss()).backward()
        for name, weight in member.named_parameters():
            torch.testing.assert_close(3 * together[f"ensemble.members.{number}.{name}"], weight.grad, rtol=1e-3, atol=1e-4)


def test_a_recipe_names_a_file_of_initial_weights(tmp_path: Path, runs: list[RunData]) -> None:
    """The file is read for a new network; a state holds all weights and needs no file."""
    torch.manual_seed(5)
    path = tmp_path / "resnet.safetensors"
    given = build_backbone("resnet", channels=1, height=64, width=72)
    save_weights(given.trunk, path)
    recipe = replace(BRIEF, model="resnet", weights=str(path))
    begun = network(recipe)
    assert isinstance(begun, PublishedNetwork)
    assert torch.equal(begun.backbone.trunk.conv1.weight, given.trunk.conv1.weight)
    strategy = make(recipe)
    for experience, run in enumerate(runs[:2]):
        strategy.learn(experience, run, reader(runs))
    path.unlink()
    resumed = make(recipe)
    resumed.restore(strategy.state())
    assert_same_state(resumed, strategy)
    with pytest.raises(InputError, match=r"resnet.safetensors cannot be read"):
        make(recipe).learn(0, runs[0], reader(runs))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "ensemble:resnet+alexnet"}, "no network 'alexnet'"),
        ({"model": "ensemble:"}, "without a name"),
        ({"model": "ensemble:study_vit+resnet"}, "cannot be in an ensemble"),
        ({"model": "resnet", "readout": "class"}, "no readout 'class'; choose one of tokens, native"),
        ({"model": "vit", "readout": "native"}, "no readout 'native'; choose one of tokens, mean, class"),
        ({"model": "resnet", "size": "large"}, "no size 'large'"),
        ({"model": "resnet", "dropout": 1.0}, "dropout"),
        ({"model": "vit", "weights": "w.safetensors"}, "weights are of one of deit"),
    ],
)
def test_unusable_recipes_are_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Recipe(**changes)


def test_the_native_readout_is_the_published_one() -> None:
    native, whole = (network(Recipe(model="swin", readout=readout)) for readout in ("native", "tokens"))
    assert [model.heads()[0].weight.shape[1] for model in (native, whole)] == [64, 72 * 64]
