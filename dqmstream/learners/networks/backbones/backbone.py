"""A backbone: the map brought to the size that a trunk takes, the trunk, and what is read of its last map.

A trunk is a module as timm makes them: `forward_features` (B, C, H, W) to its last map or tokens, `forward_head` with
`pre_logits` from there to what it is published to classify by. That is the `native` readout: a class token, or a mean over all
places. `map` keeps all places side by side: a mean loses what a single channel of a detector says.

B maps, C channels, H x W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqmstream.learners.networks.backbones.weights import Taken
from dqmstream.lumisection import N_IPHI

Places = Callable[[nn.Module, Tensor], Tensor]
"""From a trunk and its `forward_features` to one tensor that holds every place's features."""


class Canvas(nn.Module):
    """Maps (B, C, H, W) on as many pixels as a trunk takes: padded below and to the right, or resized to published pixels.

    A map of all 72 columns goes round in iphi, so columns that are added are its first ones again; all other padding is zero.
    """

    def __init__(self, height: int, width: int, pixels: tuple[int, int], resize: bool) -> None:
        super().__init__()
        self.pixels, self.resize = pixels, resize
        self.below, self.right = pixels[0] - height, pixels[1] - width
        self.is_round = width == N_IPHI

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.resize and (self.below or self.right):
            return functional.interpolate(x_BCHW, size=self.pixels, mode="bilinear", align_corners=False)
        if self.right > 0:
            x_BCHW = functional.pad(x_BCHW, (0, self.right, 0, 0), mode="circular" if self.is_round else "constant")
        return functional.pad(x_BCHW, (0, 0, 0, self.below)) if self.below > 0 else x_BCHW


@dataclass(frozen=True, slots=True)
class Trunk:
    """A trunk for maps of one size. pixels: what it takes; resize: whether maps are resized to them; places: as `Places`."""

    module: nn.Module
    pixels: tuple[int, int]
    resize: bool = False
    places: Places = lambda module, last: last


class Backbone(nn.Module):
    """Maps (B, C, H, W) to features (B, F), each row from its own map alone in evaluation mode.

    features: F. taken: what a file of weights gave it, None without one.
    """

    def __init__(self, trunk: Trunk, *, channels: int, height: int, width: int, readout: str, dropout: float) -> None:
        """readout: native or map; dropout: of the features, in training."""
        super().__init__()
        self.map_shape = (channels, height, width)
        self.canvas = Canvas(height, width, trunk.pixels, trunk.resize)
        self.trunk = trunk.module
        self.dropout = nn.Dropout(dropout)
        self.taken: Taken | None = None
        self._places = trunk.places if readout == "map" else None
        # The trunk says itself how many features it has: the map that is left of an image is its own affair.
        was_training = self.training
        self.eval()
        with torch.no_grad():
            self.features = self(torch.zeros(1, *self.map_shape)).shape[1]
        self.train(was_training)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, F). Raises ValueError for maps of another shape than it was built for."""
        if x_BCHW.ndim != 4 or x_BCHW.shape[1:] != self.map_shape:
            raise ValueError(f"maps of shape {tuple(x_BCHW.shape[1:])} went into a backbone for maps of {self.map_shape}")
        last = self.trunk.forward_features(self.canvas(x_BCHW))
        if self._places is None:
            return self.dropout(self.trunk.forward_head(last, pre_logits=True))
        return self.dropout(self._places(self.trunk, last).flatten(1))
