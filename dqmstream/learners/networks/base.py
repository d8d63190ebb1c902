"""What every network is: numbers of the live channels in, a logit for each known run out, and a head that grows.

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
    """A linear map to as many outputs as there are classes; a new one starts at zero, and leaves the old ones as they are."""

    def __init__(self, features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, features))
        self.bias = nn.Parameter(torch.zeros(0)) if bias else None

    def forward(self, x_BF: Tensor) -> Tensor:
        return nn.functional.linear(x_BF, self.weight, self.bias)

    def grow(self, classes: int) -> None:
        """Have `classes` outputs. Raises ValueError for fewer than there are."""
        new = classes - len(self.weight)
        if new < 0:
            raise ValueError(f"a head of {len(self.weight)} classes cannot shrink to {classes}")
        weight = self.weight.detach()
        self.weight = nn.Parameter(torch.cat([weight, weight.new_zeros(new, weight.shape[1])]))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.cat([self.bias.detach(), weight.new_zeros(new)]))


class Network(nn.Module, ABC):
    """Residuals (B, L) to logits (B, C); C is 0 until `grow` is called.

    A row of logits depends on its own residuals alone.
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

    @abstractmethod
    def heads(self) -> list[GrowingLinear]:
        """The linear maps whose sum the logits are, or of an ensemble's members, of which the logits are the mean."""

    def inputs(self, reference: Reference, counts: np.ndarray) -> np.ndarray:
        """What goes into `forward`, float32 (n, L), from counts of the live channels (n, L): their residuals."""
        return reference.residuals_of_live(counts)

    def routers(self) -> list[Router]:
        """Routers of its Mixtures of Experts, first to last."""
        return []

    def auxiliary_loss(self) -> Tensor | float:
        """Sum of what the routers add to the loss of the last forward in training."""
        losses = [router.auxiliary_loss for router in self.routers()]
        return sum(loss for loss in losses if loss is not None)

    def after_step(self) -> None:
        """To be called after each training step."""
        for router in self.routers():
            router.after_step()

    @property
    def channels(self) -> int:
        """Live channels that the input has."""
        return len(self.cell_L)

    @property
    def device(self) -> torch.device:
        return self.cell_L.device

    @property
    def classes(self) -> int:
        return len(self.heads()[0].weight)

    def grow(self, classes: int) -> None:
        """Have a head of `classes` rows: the old ones exactly as they were, the new ones zero."""
        for head in self.heads():
            head.grow(classes)

    def to_map(self, residuals_BL: Tensor) -> Tensor:
        """Residuals in their places, zero elsewhere: shape (B, depth, 64, 72)."""
        cells = int(np.prod(self.map_shape))
        maps = residuals_BL.new_zeros(len(residuals_BL), cells).index_copy(1, self.cell_L, residuals_BL)
        return maps.view(-1, *self.map_shape)
