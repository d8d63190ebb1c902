"""The quadratic network: logits that are linear in products of learnt projections of the residuals, and in nothing else.

It sees how channels move together and no mean, so its errors differ from those of closed forms, which hold the means.

B lumisections, L live channels, C classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.products import Products
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network


@register_network("quadratic")
class Quadratic(Network):
    """A quadratic form of the residuals for each class, all of the same projections (`networks.products`)."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        self.products = Products(int(live.sum()), recipe.products)
        self.head = GrowingLinear(recipe.products, bias=True)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(self.products(residuals_BL))
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head]
