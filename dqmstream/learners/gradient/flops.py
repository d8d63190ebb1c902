"""What a training step costs, counted operation by operation on one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import build


def step_flops(model: nn.Module, batch: int, features: int, device: torch.device) -> float:
    """Floating-point operations of a forward and a backward pass of `batch` lumisections of `features` channels.

    `counter` counts products of matrices, convolutions and attention, a multiplication and an addition as two, and nothing
    elementwise. A Mixture of Experts costs the same wherever its tokens are sent, so any input will do; what counts is the
    experts that were chosen, also where a GPU computes others beside them.
    Weights, gradients and the random state stay as they are; in evaluation mode routers count no load.
    """
    model.eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    inputs: Tensor = torch.linspace(-1, 1, batch * features, device=device).view(batch, features)
    with counter() as counted, _in_a_loop(model):
        torch.autograd.grad(model(inputs).sum(), weights, allow_unused=True)
    return float(counted.get_total_flops())


class StepFlops:
    """`step_flops` of a network whose head grows: counted for two numbers of classes, since every further class costs the same.

    Counting takes as long as a few steps of a small network, at every run.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[int, ...], dict[int, float]] = {}

    def of_step(self, model: Network, batch: int) -> float:
        """Of a training step of so many lumisections."""
        in_heads = sum(weight.numel() for head in model.heads() for weight in head.parameters())
        without_heads = sum(weight.numel() for weight in model.parameters()) - in_heads
        counted = self._counted.setdefault((batch, without_heads), {})
        if len(counted) < 2:
            counted.setdefault(model.classes, step_flops(model, batch, model.channels, model.device))
        (first, flops), *other = counted.items()
        if not other:
            return flops
        ((second, more),) = other
        return flops + (model.classes - first) * (more - flops) / (second - first)


def counter() -> FlopCounterMode:
    """torch.utils.flop_counter, but for convolutions in groups: it takes each weight's gradient there for that of a whole one.

    Of a convolution of each channel alone, as in ConvNeXt, that would be as many times too much as there are channels.
    """
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


@contextmanager
def _in_a_loop(model: nn.Module) -> Iterator[None]:
    """Have all experts of a model computed one after another meanwhile: no more is multiplied then than they are asked for."""
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    usual = [experts.computation for experts in mixtures]
    for experts in mixtures:
        experts.computation = "loop"
    try:
        yield
    finally:
        for experts, computation in zip(mixtures, usual, strict=True):
            experts.computation = computation


def _convolution_backward(
    grad_out_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *arguments: Any, **more: Any
) -> int:
    """Either gradient, of the input and of the weights, takes as many operations as the forward pass."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = arguments
    places = (x_shape if transposed else grad_out_shape)[2:]
    return sum(map(bool, wanted[:2])) * 2 * x_shape[0] * prod(places) * prod(w_shape)


def recipe_flops(recipe: Recipe, live: np.ndarray, classes: int) -> float:
    """Floating-point operations of a training step of a recipe's own network, of so many classes, as `step_flops` counts.

    live: bool, shape (depth, 64, 72).
    """
    with torch.random.fork_rng():
        network = build(live, recipe)
    network.grow(classes)
    return step_flops(network, recipe.batch, network.channels, torch.device("cpu"))
