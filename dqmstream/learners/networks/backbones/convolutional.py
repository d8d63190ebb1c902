"""The studies' convolutional network: convolutions with ReLU and max-pooling, and a hidden layer before the head.

The fourth study had two convolutions for electrons and photons and three for quarks and gluons, then two fully connected
layers. The second of these is the head of whoever uses this network. B maps, D width, H x W places.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn


class ConvolutionalNetwork(nn.Module):
    """3 x 3 convolutions, each followed by a ReLU and a 2 x 2 max-pooling, and a fully connected layer with a ReLU."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {"first_conv": "convolutions.0", "classifier": ()}

    def __init__(self, img_size: tuple[int, int], in_chans: int, *, widths: Sequence[int], hidden: int, readout: str) -> None:
        """hidden: width of the fully connected layer, which only the readout `native` has."""
        super().__init__()
        height, width = img_size
        parts: list[nn.Module] = []
        for before, after in pairwise((in_chans, *widths)):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            height, width = -(-height // 2), -(-width // 2)
        self.convolutions = nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        whole = widths[-1] * height * width
        self.hidden = nn.Sequential(nn.Linear(whole, hidden), nn.ReLU()) if readout == "native" else None

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last map, (B, D, H', W')."""
        y_BDHW: Tensor = self.convolutions(x_BCHW)
        return y_BDHW

    def forward_head(self, last_BDHW: Tensor, pre_logits: bool = True) -> Tensor:
        """The hidden layer, (B, hidden)."""
        flat = last_BDHW.flatten(1)
        return flat if self.hidden is None else self.hidden(flat)
