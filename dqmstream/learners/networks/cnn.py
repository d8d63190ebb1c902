"""A small convolutional network on the map of residuals, the deep baseline of the benchmark tables.

The head reads the features of all places: their average would lose what a single channel says. Convolutions are circular in
iphi, which is periodic, and zero-padded in ieta.

B lumisections, L live channels, F features, R x S places of a map, C classes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network


@register_network("cnn")
class CNN(Network):
    """3 x 3 convolutions of stride 2, each followed by a ReLU, and a linear head on all places of the last map.

    Rows more than one cell away from every live channel are left out: of HE's 64 rows 26 stay.
    """

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        near_R = np.convolve(live.any(axis=(0, 2)), np.ones(3), mode="same") > 0
        self.row_R: Tensor
        self.register_buffer("row_R", torch.from_numpy(np.flatnonzero(near_R)), persistent=False)
        widths = (live.shape[0], *recipe.cnn_widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(wide, next_, 3, stride=2, padding=(1, 0)) for wide, next_ in pairwise(widths)
        )
        for convolution in self.convolutions:
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        rows, columns = len(self.row_R), live.shape[2]
        for _ in recipe.cnn_widths:
            rows, columns = -(-rows // 2), -(-columns // 2)
        self.head = GrowingLinear(widths[-1] * rows * columns, bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        x_BFRS = self.to_map(residuals_BL).index_select(2, self.row_R)
        for convolution in self.convolutions:
            x_BFRS = convolution(functional.pad(x_BFRS, (1, 1, 0, 0), mode="circular")).relu()
        logits_BC: Tensor = self.head(x_BFRS.flatten(1))
        return logits_BC if self.skip is None else logits_BC + self.skip(residuals_BL)

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.skip is None else [self.head, self.skip]
