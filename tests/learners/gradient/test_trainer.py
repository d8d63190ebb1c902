"""The training loop: batches of a lesson, batches in parts, learning rates and weight decay."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate, decay_groups
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.recipe import STUDY_RECIPE, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry, he_depth1_mask
from tests.learners.streams import make_stream, reader

CPU = torch.device("cpu")
TINY = Recipe(dim=16, depth=2, heads=2, experts=4, steps=4, batch=32)


def _with_head(recipe: Recipe) -> Network:
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], recipe)
    model.grow(2)
    for head in model.heads():
        torch.nn.init.normal_(head.weight, std=0.1)
    return model


def test_a_lesson_of_some_classes_draws_these_alone_and_all_of_their_rows() -> None:
    rows = {
        i: np.full((n, 1), i, np.float32) + 0.01 * np.arange(n, dtype=np.float32)[:, None] for i, n in ((0, 5), (3, 2), (4, 7))
    }
    lesson = Lesson(rows, replace(TINY, noise=0.0), 8, torch.device("cpu"), torch.Generator().manual_seed(0))
    for classes in ([4], [0, 4]):
        batches = list(lesson.of(classes).batches())
        assert len(batches) == 8
        drawn, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert labels.unique().tolist() == classes
        assert drawn.unique().tolist() == pytest.approx(np.concatenate([rows[i].ravel() for i in classes]).tolist())
        assert (drawn[:, 0].floor() == labels).all()


def test_positions_and_tokens_do_not_decay() -> None:
    model = _with_head(Recipe(model="deit"))
    free = {id(weight) for weight in decay_groups(model, 1.0)[1]["params"]}
    names = [name for name, weight in model.named_parameters() if weight.ndim > 1 and id(weight) in free]
    assert names == [f"backbone.trunk.{name}" for name in ("cls_token", "pos_embed", "dist_token")]


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
    """Also of what a method adds to the loss, which counts once a batch; the recorded loss is the mean over the batch."""
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


def test_the_study_recipe_trains_on_scaled_counts_at_a_constant_rate() -> None:
    """A small version: its inputs are scaled counts, and its learning rate is constant."""
    recipe = replace(STUDY_RECIPE, dim=16, depth=1, heads=2, batch=8, micro_batch=3, steps=3)
    stream = make_stream(2, drift=0.03, n=100)
    learner = make_strategy("naive", geometry=Geometry(1), seed=0, recipe=recipe, device="cpu")
    for experience, run in enumerate(stream):
        log_ = learner.learn(experience, run, reader(stream))
    assert len(log_.loss) == 3
    assert log_.loss[0] == pytest.approx(log(2), abs=1e-5)
    assert learner.scores(stream[0].maps).shape == (100, 2)
    rates: list[list[float]] = []

    class Recording(Naive):
        def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            rates.append([group["lr"] for group in strategy.optimizer.param_groups])

    template = RunTemplate(model=_with_head(recipe), recipe=recipe, device=CPU, plugin=Recording(recipe, 0, 0))
    rows = np.random.default_rng(0).random((9, 932), dtype=np.float32)
    template.teach(Lesson({0: rows, 1: rows}, recipe, 3, CPU, torch.Generator()))
    assert rates == 3 * [[1e-4, 1e-4]]
