"""The cost of a training step in floating-point operations, counted operation by operation on one batch."""

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
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.recipe import Recipe


def step_flops(model: nn.Module, batch: int, features: int, device: torch.device) -> float:
    """Floating-point operations of a forward and a backward pass of `batch` lumisections of `features` channels.

    Matrix products, convolutions and attention count, a multiplication and an addition as two; elementwise operations do not.
    Of a Mixture of Experts only chosen experts count, whatever the device computes; their number is the same for any input.
    Weights, gradients and the random state do not change.
    """
    model.eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    inputs: Tensor = torch.linspace(-1, 1, batch * features, device=device).view(batch, features)
    with counter() as counted, _in_a_loop(model):
        torch.autograd.grad(model(inputs).sum(), weights, allow_unused=True)
    return float(counted.get_total_flops())


def forward_flops(network: nn.Module, features: int) -> float:
    """Floating-point operations of a forward pass of one lumisection of so many channels, counted as `step_flops` counts."""
    network.eval()
    with counter() as counted, torch.no_grad():
        network(torch.zeros(1, features))
    return float(counted.get_total_flops())


class StepFlops:
    """`step_flops` of a network whose head grows: counted for two numbers of classes, and linear in that number.

    Counting for every run would take as long as a few training steps of a small network.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[int, ...], dict[int, float]] = {}

    def of_step(self, model: Network, batch: int) -> float:
        """Floating-point operations of a training step of `batch` lumisections."""
        in_heads = sum(weight.numel() for head in model.heads() for weight in head.parameters())
        without_heads = sum(weight.numel() for weight in model.parameters()) - in_heads
        counted = self._counted.setdefault((batch, without_heads), {})
        if len(counted) < 2:
            counted.setdefault(model.classes, step_flops(model, batch, model.row_values, model.device))
        (first, flops), *other = counted.items()
        if not other:
            return flops
        ((second, more),) = other
        return flops + (model.classes - first) * (more - flops) / (second - first)


def counter() -> FlopCounterMode:
    """PyTorch's flop counter with a correct count for the backward pass of grouped convolutions.

    PyTorch counts that of an ungrouped one: for a depthwise convolution, as in ConvNeXt, too much by the number of channels.
    """
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


@contextmanager
def _in_a_loop(model: nn.Module) -> Iterator[None]:
    """Inside, the experts of a model are computed by `loop`, which computes chosen experts alone."""
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
    """The gradient of the input and that of the weights each take as many operations as the forward pass."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = arguments
    places = (x_shape if transposed else grad_out_shape)[2:]
    return sum(map(bool, wanted[:2])) * 2 * x_shape[0] * prod(places) * prod(w_shape)


def recipe_flops(recipe: Recipe, live: np.ndarray, classes: int) -> float:
    """`step_flops` of a training step of a recipe's network with so many classes. live: bool, shape (depth, 64, 72)."""
    with torch.random.fork_rng():
        network = build(live, recipe)
    network.grow(classes)
    return step_flops(network, recipe.batch, network.channels, torch.device("cpu"))
