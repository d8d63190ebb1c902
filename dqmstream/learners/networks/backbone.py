"""A backbone on the map of residuals, and ensembles of any networks: the published families as a stream learns by them.

B lumisections, L live channels, F features, C classes, K members.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.backbones import build_backbone
from dqmstream.learners.networks.backbones.ensemble import Ensemble
from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.moe.routers import Router
from dqmstream.learners.networks.recipe import Recipe


class BackboneNetwork(Network):
    """Residuals in their places, a backbone of the recipe's name and size, and a head that reads all places of its last map.

    With the readout `native` the head reads what the backbone is published to classify by.
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


class EnsembleNetwork(Network):
    """Networks side by side whose logits are averaged; each learns as if it were alone (`backbones.ensemble`)."""

    def __init__(self, live: np.ndarray, members: list[Network]) -> None:
        super().__init__(live)
        self.ensemble = Ensemble(members)

    @property
    def members(self) -> list[Network]:
        return list(self.ensemble.members)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.ensemble(residuals_BL)
        return logits_BC

    def auxiliary_loss(self) -> Tensor | float:
        """The members' own losses, as a mean, and what makes their cross-entropies of that of the mean."""
        losses = [member.auxiliary_loss() for member in self.members]
        return self.ensemble.auxiliary_loss() + sum(losses) / len(losses)

    def after_step(self) -> None:
        for member in self.members:
            member.after_step()

    def heads(self) -> list[GrowingLinear]:
        return [head for member in self.members for head in member.heads()]

    def routers(self) -> list[Router]:
        return [router for member in self.members for router in member.routers()]
