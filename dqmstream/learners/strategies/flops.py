"""What a training step costs, counted operation by operation on one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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
