"""CSwin: half of the heads attend within horizontal stripes, the other half within vertical ones (arXiv:2107.00652).

Written for maps of any shape: a stripe that does not divide the map is padded with cells that nobody attends to. A 3 x 3
depthwise convolution of the values within a stripe is the paper's locally enhanced positional encoding (LePE). A stage whose
stripe covers the map has one branch of full attention, as the paper's last stage has.

B maps, D width, H x W places, S stripes, N places of a stripe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional


class StripeAttention(nn.Module):
    """Attention within stripes of high x wide places: queries, keys and values (3, B, H, W, D) to (B, H, W, D)."""

    def __init__(self, dim: int, heads: int, stripe: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.stripe = heads, stripe
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv_3BHWD: Tensor) -> Tensor:
        _, batch, height, width, dim = qkv_3BHWD.shape
        high, wide = self.stripe
        rows, columns = -(-height // high), -(-width // wide)
        missing = (rows * high - height, columns * wide - width)
        padded = functional.pad(qkv_3BHWD, (0, 0, 0, missing[1], 0, missing[0]))
        # (3, B, S, N, D). Padding is zero, so LePE adds nothing from outside the map.
        stripes = padded.view(3, batch, rows, high, columns, wide, dim).transpose(3, 4).reshape(3, batch, -1, high * wide, dim)
        q, k, v = stripes.unflatten(-1, (self.heads, -1)).transpose(3, 4)
        mask = self._mask(height, width, rows, columns, qkv_3BHWD.device) if any(missing) else None
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(2, 3).flatten(3)
        values = stripes[2].reshape(-1, high, wide, dim).permute(0, 3, 1, 2)
        lepe = self.lepe(values).permute(0, 2, 3, 1).reshape(attended.shape)
        whole = (attended + lepe).view(batch, rows, columns, high, wide, dim).transpose(2, 3)
        return whole.reshape(batch, rows * high, columns * wide, dim)[:, :height, :width]

    def _mask(self, height: int, width: int, rows: int, columns: int, device: torch.device) -> Tensor:
        """Which places of each stripe are inside the map: bool, (S, 1, 1, N)."""
        high, wide = self.stripe
        inside = torch.zeros(rows * high, columns * wide, dtype=torch.bool, device=device)
        inside[:height, :width] = True
        return inside.view(rows, high, columns, wide).transpose(1, 2).reshape(-1, 1, 1, high * wide)


class CSwinBlock(nn.Module):
    """Attention in both directions, with half of the width each, then an MLP, both with a norm before and a residual branch."""

    def __init__(self, dim: int, heads: int, split: int, places: tuple[int, int], mlp_ratio: float = 4.0) -> None:
        """split: width of a stripe. places: H x W of the map."""
        super().__init__()
        height, width = places
        is_whole = split >= height and split >= width
        stripes = [places] if is_whole else [(height, min(split, width)), (min(split, height), width)]
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.branches = nn.ModuleList(StripeAttention(dim // len(stripes), heads // len(stripes), s) for s in stripes)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        qkv_3BHWD = self.qkv(self.norm1(x_BHWD)).unflatten(-1, (3, -1)).movedim(-2, 0)
        parts = qkv_3BHWD.chunk(len(self.branches), dim=-1)
        attended = torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=-1)
        x_BHWD = x_BHWD + self.proj(attended)
        y_BHWD: Tensor = x_BHWD + self.mlp(self.norm2(x_BHWD))
        return y_BHWD


class Embedding(nn.Module):
    """A strided convolution and a norm: (B, C, H, W) to (B, H', W', D)."""

    def __init__(self, channels: int, dim: int, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, kernel, stride, pad)
        self.norm = nn.LayerNorm(dim)
        self._window = kernel, stride, pad

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BHWD: Tensor = self.norm(self.conv(x_BCHW).permute(0, 2, 3, 1))
        return y_BHWD

    def places(self, height: int, width: int) -> tuple[int, int]:
        """H', W' for an input of H x W."""
        sides = zip((height, width), *self._window, strict=True)
        high, wide = ((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sides)
        return high, wide


class CSwin(nn.Module):
    """Stages of blocks; before each but the first a convolution halves the map and doubles the width."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {"first_conv": "embeddings.0.conv", "classifier": "head"}

    def __init__(
        self,
        img_size: tuple[int, int],
        in_chans: int,
        *,
        embed_dim: int = 64,
        depths: Sequence[int] = (1, 2, 21, 1),
        heads: Sequence[int] = (2, 4, 8, 16),
        splits: Sequence[int] = (1, 2, 7, 7),
        stride: tuple[int, int] = (4, 4),
    ) -> None:
        """Defaults are CSWin-T. stride: of the first convolution; its kernel is 2 stride - 1, as the paper's 7 is for 4."""
        super().__init__()
        down, across = stride
        kernel, pad = (2 * down - 1, 2 * across - 1), (down // 2, across // 2)
        self.embeddings, self.stages = nn.ModuleList(), nn.ModuleList()
        places, dim = img_size, embed_dim
        for stage, (depth, head, split) in enumerate(zip(depths, heads, splits, strict=True)):
            embedding = (
                Embedding(dim // 2, dim, (3, 3), (2, 2), (1, 1)) if stage else Embedding(in_chans, dim, kernel, stride, pad)
            )
            places = embedding.places(*places)
            self.embeddings.append(embedding)
            # The last stage attends to its whole map, as in the paper.
            whole = max(places) if stage == len(depths) - 1 else split
            self.stages.append(nn.Sequential(*(CSwinBlock(dim, head, whole, places) for _ in range(depth))))
            dim *= 2
        self.norm = nn.LayerNorm(dim // 2)
        self.apply(_init)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last map, (B, H', W', D)."""
        x = x_BCHW
        for stage, (embedding, blocks) in enumerate(zip(self.embeddings, self.stages, strict=True)):
            x = blocks(embedding(x))
            if stage < len(self.stages) - 1:
                x = x.permute(0, 3, 1, 2)
        y_BHWD: Tensor = self.norm(x)
        return y_BHWD

    def forward_head(self, last_BHWD: Tensor, pre_logits: bool = True) -> Tensor:
        """Mean over the places, (B, D)."""
        return last_BHWD.mean(dim=(1, 2))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
