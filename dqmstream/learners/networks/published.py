"""Published families (ResNet, Swin, ...) on the map of residuals.

B lumisections, L live channels, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.backbones import build_backbone
from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import BACKBONES, register_network


class PublishedNetwork(Network):
    """Residuals in their places, the backbone that the recipe names, and a linear head.

    The head reads all places of the last map; with the readout `native`, what the family is published to classify by.
    """

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        depth, height, width = live.shape
        self.backbone = build_backbone(
            recipe.model,
            channels=depth,
            height=height,
            width=width,
            size=recipe.size,
            dropout=recipe.dropout,
            weights=Path(recipe.weights) if recipe.weights else None,
            readout="map" if recipe.readout == "tokens" else recipe.readout,
        )
        self.head = GrowingLinear(self.backbone.features, bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(self.backbone(self.to_map(residuals_BL)))
        return logits_BC if self.skip is None else logits_BC + self.skip(residuals_BL)

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.skip is None else [self.head, self.skip]


for _name in BACKBONES:
    register_network(_name)(PublishedNetwork)
