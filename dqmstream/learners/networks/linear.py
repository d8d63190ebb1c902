"""The linear network: one weight for each live channel and class.

B lumisections, L live channels, C classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network


@register_network("linear")
class Linear(Network):
    """Multinomial logistic regression on the residuals, trained by gradient steps."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        self.head = GrowingLinear(int(live.sum()), bias=True)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(residuals_BL)
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head]
