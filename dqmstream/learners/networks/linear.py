"""The linear network: one weight for each live channel and class, and products of projections where the recipe asks for them.

B lumisections, L live channels, C classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.products import Products
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network


@register_network("linear")
class Linear(Network):
    """Multinomial logistic regression on the residuals and their products (`networks.products`), trained by gradient steps."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        channels = int(live.sum())
        self.head = GrowingLinear(channels, bias=True)
        self.products = Products(channels, recipe.products) if recipe.products else None
        self.product_head = GrowingLinear(recipe.products, bias=False) if recipe.products else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(residuals_BL)
        if self.products is not None and self.product_head is not None:
            logits_BC = logits_BC + self.product_head(self.products(residuals_BL))
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.product_head is None else [self.head, self.product_head]
