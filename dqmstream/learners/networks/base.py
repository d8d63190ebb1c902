"""What every network is: residuals of the live channels in, a logit for each known run out, and a head that grows.

B lumisections, L live channels, F features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.learners.networks.moe.routers import Router
from dqmstream.learners.response.reference import Reference


class GrowingLinear(nn.Module):
    """A linear map with one output a class. Weights of new classes are zero; those of old ones stay as they are."""

    def __init__(self, features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, features))
        self.bias = nn.Parameter(torch.zeros(0)) if bias else None

    def forward(self, x_BF: Tensor) -> Tensor:
        return nn.functional.linear(x_BF, self.weight, self.bias)

    def grow(self, classes: int) -> None:
        """Grow to `classes` outputs. Raises ValueError if there are more already."""
        new = classes - len(self.weight)
        if new < 0:
            raise ValueError(f"a head of {len(self.weight)} classes cannot shrink to {classes}")
        weight = self.weight.detach()
        self.weight = nn.Parameter(torch.cat([weight, weight.new_zeros(new, weight.shape[1])]))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.cat([self.bias.detach(), weight.new_zeros(new)]))


class Network(nn.Module, ABC):
    """Residuals (B, L) to logits (B, C); C is 0 until `grow` is called.

    The logits of a lumisection depend on its own residuals alone. A subclass defines `forward` and `heads`.
    """

    def __init__(self, live: np.ndarray) -> None:
        """live: bool, shape (depth, 64, 72); the L cells that have a residual."""
        super().__init__()
        self.map_shape = live.shape
        self.cell_L: Tensor
        self.register_buffer("cell_L", torch.from_numpy(np.flatnonzero(live)), persistent=False)

    @abstractmethod
    def forward(self, residuals_BL: Tensor) -> Tensor:
        """Logits (B, C)."""

    def forward_with(self, residuals_BL: Tensor, conditions_BC: Tensor) -> Tensor:
        """Logits (B, C) where conditions are known too; a network that does not look at them ignores them."""
        logits_BC: Tensor = self.forward(residuals_BL)
        return logits_BC

    @abstractmethod
    def heads(self) -> list[GrowingLinear]:
        """The linear maps that the logits are the sum of; of an ensemble, those of all members."""

    def inputs(self, reference: Reference, counts: np.ndarray) -> np.ndarray:
        """Input of `forward`, float32 (n, L), from counts of the live channels (n, L): their residuals."""
        return reference.residuals_of_live(counts)

    def routers(self) -> list[Router]:
        """Routers of its Mixtures of Experts, first to last."""
        return []

    def auxiliary_loss(self) -> Tensor | float:
        """What is to be added to the loss of the last forward pass in training."""
        losses = [router.auxiliary_loss for router in self.routers()]
        return sum(loss for loss in losses if loss is not None)

    def after_step(self) -> None:
        """Called after each training step."""
        for router in self.routers():
            router.after_step()

    @property
    def channels(self) -> int:
        """Number of live channels."""
        return len(self.cell_L)

    @property
    def row_values(self) -> int:
        """Values of a row that `inputs` are made of."""
        return self.channels

    @property
    def device(self) -> torch.device:
        return self.cell_L.device

    @property
    def classes(self) -> int:
        return len(self.heads()[0].weight)

    def grow(self, classes: int) -> None:
        """Grow the head to `classes`. Raises ValueError if there are more already."""
        for head in self.heads():
            head.grow(classes)

    def to_map(self, residuals_BL: Tensor) -> Tensor:
        """Residuals in their places, zero elsewhere: shape (B, depth, 64, 72)."""
        cells = int(np.prod(self.map_shape))
        maps = residuals_BL.new_zeros(len(residuals_BL), cells).index_copy(1, self.cell_L, residuals_BL)
        return maps.view(-1, *self.map_shape)
