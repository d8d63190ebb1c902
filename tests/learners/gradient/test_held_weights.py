"""SI and MAS measure what their papers say, and hold the weights that it names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dqmstream.learners.gradient.mas import sensitivity
from dqmstream.learners.gradient.si import PathIntegral
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

CURVATURE, MINIMUM = torch.tensor([[4.0, 1.0, 0.25]]), torch.tensor([[1.0, -2.0, 3.0]])


def descend(held: bool) -> tuple[PathIntegral, torch.Tensor]:
    """Gradient descent to the minimum of sum a (θ - t)² / 2; held: a penalty pulls too, and the loss is not its doing."""
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    path = PathIntegral(model)
    for _ in range(4000):
        slope = CURVATURE * (model.weight.detach() - MINIMUM)
        pull = 0.3 * model.weight.detach() if held else torch.zeros(1, 3)
        model.weight.grad = slope + pull
        path.before_step({"weight": pull})
        with torch.no_grad():
            model.weight -= 5e-3 * model.weight.grad
        path.after_step()
    return path, model.weight.detach()


def test_the_importance_of_si_is_the_path_integral_over_the_distance_squared() -> None:
    """On a quadratic: ω = a t² / 2, the fall of the loss by each weight, and Ω = a / 2, half the curvature."""
    path, _ = descend(held=False)
    torch.testing.assert_close(path.importance(0.0)["weight"], CURVATURE / 2, rtol=0.02, atol=0)
    damped = path.importance(0.5)["weight"]
    torch.testing.assert_close(damped, CURVATURE * MINIMUM**2 / 2 / (MINIMUM**2 + 0.5), rtol=0.02, atol=0)


def test_si_counts_the_fall_of_the_loss_and_not_that_of_its_penalty() -> None:
    path, end = descend(held=True)
    fall = CURVATURE * (MINIMUM**2 - (end - MINIMUM) ** 2) / 2
    torch.testing.assert_close(path.importance(0.0)["weight"], fall / end**2, rtol=0.02, atol=0)


def test_the_importance_of_mas_is_the_mean_magnitude_of_the_gradient_of_the_squared_output() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.2], [0.1, 0.3]]))
    samples = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0], [2.0, 1.0]])
    outputs = samples @ model.weight.detach().T
    gradients = 2 * outputs[:, :, None] * samples[:, None, :]
    found = sensitivity(model, samples)["weight"]
    torch.testing.assert_close(found, gradients.abs().mean(dim=0))
    assert not torch.allclose(found, gradients.mean(dim=0).abs(), rtol=0.2)


@pytest.mark.parametrize(("name", "strength"), [("si", "si_strength"), ("mas", "mas_strength")])
def test_important_weights_move_less(name: str, strength: str) -> None:
    stream = make_stream(3, drift=0.03, seed=5, n=100)
    moved = []
    for value in (0.0, 1e3):
        recipe = Recipe(model="cnn", cnn_widths=(4, 6), steps=8, batch=16, lr=3e-3, fisher_samples=4)
        changed: Any = {strength: value}
        strategy: Any = make_strategy(name, geometry=Geometry(1), seed=0, recipe=replace(recipe, **changed), device="cpu")
        for experience in (0, 1):
            strategy.learn(experience, stream[experience], reader(stream))
        importance = {n: one.clone() for n, one in strategy.method.importance.items()}
        before = {n: p.detach().clone() for n, p in strategy.network.named_parameters()}
        strategy.learn(2, stream[2], reader(stream))
        steps = {n: p.detach()[: len(before[n])] - before[n] for n, p in strategy.network.named_parameters()}
        moved.append(sum(float((one * steps[n] ** 2).sum()) for n, one in importance.items()))
    assert moved[1] < 0.5 * moved[0]
