"""A backbone: maps padded or resized to what a trunk takes, the trunk, and the features that are read from its last map.

A trunk is a module as timm builds them: `forward_features` maps (B, C, H, W) to its last map or tokens, and `forward_head` with
`pre_logits` maps these to what the family is published to classify by, a class token or a mean over all places. That is the
readout `native`. The readout `map` keeps all places: a mean loses what a single channel of a detector says.

B maps, C channels, H x W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqmstream.learners.networks.backbones.weights import LoadedWeights
from dqmstream.lumisection import N_IPHI

Places = Callable[[Any, Tensor], Tensor]
"""From a trunk and the result of its `forward_features` to one tensor with the features of every place."""


class Canvas(nn.Module):
    """Maps (B, C, H, W) padded below and to the right, or resized, to the pixels that a trunk takes.

    A map of all 72 columns is padded periodically in iphi, anything else with zeros.
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
    """A trunk for maps of one size.

    pixels: height and width that it takes. resize: whether maps are resized to these, instead of padded. places: see `Places`.
    """

    module: nn.Module
    pixels: tuple[int, int]
    resize: bool = False
    places: Places = lambda module, last: last


class Backbone(nn.Module):
    """Maps (B, C, H, W) to features (B, F); in evaluation mode each row depends on its own map alone.

    Attributes
    ----------
    features
        F.
    loaded
        What was loaded from a file of weights, None without one.
    """

    def __init__(self, trunk: Trunk, *, channels: int, height: int, width: int, readout: str, dropout: float) -> None:
        """readout: native or map; dropout: of the features, in training."""
        super().__init__()
        self.map_shape = (channels, height, width)
        self.canvas = Canvas(height, width, trunk.pixels, trunk.resize)
        self.trunk: Any = trunk.module  # timm's modules do not declare the methods of a trunk
        self.dropout = nn.Dropout(dropout)
        self.loaded: LoadedWeights | None = None
        self._places = trunk.places if readout == "map" else None
        # The number of features follows from the trunk's last map, so it is read from one forward pass.
        was_training = self.training
        self.eval()
        with torch.no_grad():
            self.features = self(torch.zeros(1, *self.map_shape)).shape[1]
        self.train(was_training)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, F). Raises ValueError for maps of a shape that the backbone was not built for."""
        if x_BCHW.ndim != 4 or x_BCHW.shape[1:] != self.map_shape:
            raise ValueError(f"the backbone takes maps of shape {self.map_shape}, not {tuple(x_BCHW.shape[1:])}")
        last = self.trunk.forward_features(self.canvas(x_BCHW))
        if self._places is None:
            features_BF: Tensor = self.dropout(self.trunk.forward_head(last, pre_logits=True))
        else:
            features_BF = self.dropout(self._places(self.trunk, last).flatten(1))
        return features_BF
