"""What a training step costs, counted operation by operation on one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dqmstream.learners.network import Network


def step_flops(model: nn.Module, batch: int, features: int, device: torch.device) -> float:
    """Floating-point operations of a forward and a backward pass of `batch` lumisections of `features` channels.

    torch.utils.flop_counter counts products of matrices, convolutions and attention, a multiplication and an addition as
    two, and nothing elementwise. A Mixture of Experts costs the same wherever its tokens are sent, so any input will do.
    Weights, gradients and the random state stay as they are; in evaluation mode routers count no load.
    """
    model.eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    inputs: Tensor = torch.linspace(-1, 1, batch * features, device=device).view(batch, features)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(model(inputs).sum(), weights, allow_unused=True)
    return float(counter.get_total_flops())


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
