"""The studies' convolutional networks: 3 x 3 convolutions with a ReLU, then fully connected layers.

B images, C channels, H x W cells, F features, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ConvNet(nn.Module):
    """3 x 3 convolutions that keep height and width, each followed by a ReLU and, with pooling, a 2 x 2 maximum.

    Fully connected layers follow, with dropout before each of them.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        convolutions: Sequence[int],
        pooling: bool,
        hidden: Sequence[int],
        dropout: float,
        glorot: bool,
    ) -> None:
        """shape: (C, H, W). glorot: uniform weights of Glorot and Bengio (2010) and zero biases, as Keras draws them."""
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for wide, next_ in pairwise((channels, *convolutions)):
            layers += [nn.Conv2d(wide, next_, 3, padding=1), nn.ReLU()]
            if pooling:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.convolutions = nn.Sequential(*layers)
        features = (convolutions[-1] * height * width, *hidden)
        dense: list[nn.Module] = []
        for wide, next_ in pairwise(features):
            dense += [nn.Dropout(dropout), nn.Linear(wide, next_), nn.ReLU()]
        self.dense = nn.Sequential(*dense, nn.Dropout(dropout), nn.Linear(features[-1], outputs))
        if glorot:
            self.apply(_glorot)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.dense(self.convolutions(x_BCHW).flatten(1))
        return logits_BK


def _glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
