"""The default network: a vision transformer with Mixtures of Experts, whose head reads all tokens in their places.

Its input is one residual for each live channel. The head reads all tokens, because their average and a class token lose what a
single channel says. A linear map from the residuals to the logits (`linear_skip`) carries what single channels say; the
transformer carries what several say together. A second head may read products of projections (`networks.products`).

B lumisections, L live channels, N tokens, P cells of a token's patch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.moe.config import MoEConfig
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.moe.routers import Router
from dqmstream.learners.networks.products import Products
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network
from dqmstream.lumisection import N_IPHI


class Tokens(nn.Module):
    """Residuals (B, L) to tokens (B, N, D): a linear map of the cells of each patch, which are zero where nothing is live.

    Patches begin `shift` columns before the map does, and are periodic in iphi: with 32 x 4 cells and a shift of 2, each is a
    readout box. Patches without a live channel are left out: 32 of HE's 64 patches of 8 x 9 cells.
    """

    def __init__(self, live: np.ndarray, patch: tuple[int, int], shift: int, dim: int) -> None:
        super().__init__()
        depths, (high, wide) = live.shape[0], patch
        depth, row, column = np.nonzero(live)
        column = (column + shift) % N_IPHI
        patch_L = row // high * (N_IPHI // wide) + column // wide
        cell_L = (depth * high + row % high) * wide + column % wide
        patches, token_L = np.unique(patch_L, return_inverse=True)
        self.tokens, self.cells = len(patches), depths * high * wide
        self.place_L: Tensor
        self.register_buffer("place_L", torch.from_numpy(token_L * self.cells + cell_L), persistent=False)
        self.embed = nn.Linear(self.cells, dim)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        flat = residuals_BL.new_zeros(len(residuals_BL), self.tokens * self.cells)
        x_BNP = flat.index_copy(1, self.place_L, residuals_BL).view(-1, self.tokens, self.cells)
        x_BND: Tensor = self.embed(x_BNP)
        return x_BND


class ViT(Network):
    """A transformer over patches of cells; the recipe's `readout` says what the head reads of its tokens."""

    def __init__(self, live: np.ndarray, recipe: Recipe, moe_layer: Callable[..., nn.Module]) -> None:
        """moe_layer: in place of the MLP of the recipe's `moe_blocks`, called as timm's Block calls its `mlp_layer`."""
        super().__init__(live)
        dim = recipe.dim
        self.tokens = Tokens(live, recipe.patch, recipe.patch_shift, dim)
        self.position_ND = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.tokens.tokens, dim), std=0.02))
        self.class_D = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02)) if recipe.readout == "class" else None
        block = partial(Block, dim, recipe.heads, mlp_ratio=recipe.mlp_ratio, qkv_bias=True)
        self.blocks = nn.ModuleList(
            block(mlp_layer=moe_layer) if i in recipe.moe_blocks else block() for i in range(recipe.depth)
        )
        self._routers = [module for module in self.modules() if isinstance(module, Router)]
        self.norm = nn.LayerNorm(dim)
        self._read = READOUTS[recipe.readout]
        features = dim * (len(self.position_ND) if recipe.readout == "tokens" else 1)
        self.head = GrowingLinear(features, bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None
        self.products = Products(features, recipe.products) if recipe.products else None
        self.product_head = GrowingLinear(recipe.products, bias=False) if recipe.products else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        x_BND = self.tokens(residuals_BL) + self.position_ND
        if self.class_D is not None:
            x_BND = torch.cat([self.class_D.expand(len(x_BND), 1, -1), x_BND], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        x_BF = self._read(self.norm(x_BND))
        logits_BC: Tensor = self.head(x_BF)
        if self.skip is not None:
            logits_BC = logits_BC + self.skip(residuals_BL)
        if self.products is not None and self.product_head is not None:
            logits_BC = logits_BC + self.product_head(self.products(x_BF))
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [head for head in (self.head, self.skip, self.product_head) if head is not None]

    def routers(self) -> list[Router]:
        return self._routers


READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens": lambda x_BND: x_BND.flatten(1),
    "mean": lambda x_BND: x_BND.mean(dim=1),
    "class": lambda x_BND: x_BND[:, 0],
}
"""What the head reads of the tokens (B, N, D), by the name that a recipe gives."""


@register_network("moe_vit")
def moe_vit(live: np.ndarray, recipe: Recipe) -> ViT:
    """A transformer with a Mixture of Experts in the blocks that the recipe names."""
    config = MoEConfig(
        experts=recipe.experts,
        top_k=recipe.top_k,
        shared_expert=recipe.shared_expert,
        router=recipe.router,
        aux_weight=recipe.aux_weight,
        z_weight=recipe.z_weight,
        bias_rate=recipe.bias_rate,
        places=recipe.places,
    )
    return ViT(live, recipe, partial(MoE, config=config))


@register_network("vit")
def plain_vit(live: np.ndarray, recipe: Recipe) -> ViT:
    """A transformer with an MLP in those blocks, as wide as all experts of a token together: the same operations."""

    def wide_mlp(in_features: int, hidden_features: int, **more: object) -> nn.Module:
        return Mlp(in_features, hidden_features * (recipe.top_k + recipe.shared_expert), **more)

    return ViT(live, recipe, wide_mlp)
