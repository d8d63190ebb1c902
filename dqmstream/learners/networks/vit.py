"""The deep learner's own network: a vision transformer, with Mixtures of Experts, whose head sees every token in its place.

Its input are residuals to the reference, one number for each live channel. Measured: averaging the tokens, or reading a class
token, loses what a single channel says, so the head reads all of them side by side. What one channel says alone takes a short
way, a linear map from the residuals to the logits; what several say together takes the transformer.

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
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.moe.routers import Router
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.lumisection import N_IPHI


class Tokens(nn.Module):
    """Residuals (B, L) to tokens (B, N, D): a linear map of each patch's cells, zero where nothing is live.

    Patches begin `shift` columns before the map does, and go round in iphi: of 32 x 4 cells and shifted by 2, each is a readout
    box. Those in which no channel is live are left out: of HE's 64 patches of 8 x 9 only 32 hold one.
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
        self.register_buffer("place_L", torch.from_numpy(token_L * self.cells + cell_L), persistent=False)
        self.embed = nn.Linear(self.cells, dim)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        flat = residuals_BL.new_zeros(len(residuals_BL), self.tokens * self.cells)
        x_BNP = flat.index_copy(1, self.place_L, residuals_BL).view(-1, self.tokens, self.cells)
        x_BND: Tensor = self.embed(x_BNP)
        return x_BND


class ViT(Network):
    """A `Network` of tokens, each a patch of cells; depths are the input's channels.

    What the head reads is the recipe's `readout`: all tokens in their places, their mean, or a token for the class.
    """

    def __init__(self, live: np.ndarray, recipe: Recipe, chosen_mlp: Callable[..., nn.Module]) -> None:
        """chosen_mlp: made, as timm makes an Mlp, in the blocks that the recipe names in `moe_blocks`; others have an Mlp."""
        super().__init__(live)
        dim = recipe.dim
        self.tokens = Tokens(live, recipe.patch, recipe.patch_shift, dim)
        self.position_ND = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.tokens.tokens, dim), std=0.02))
        self.class_D = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02)) if recipe.readout == "class" else None
        block = partial(Block, dim, recipe.heads, mlp_ratio=recipe.mlp_ratio, qkv_bias=True)
        self.blocks = nn.ModuleList(
            block(mlp_layer=chosen_mlp) if i in recipe.moe_blocks else block() for i in range(recipe.depth)
        )
        self._routers = [module for module in self.modules() if isinstance(module, Router)]
        self.norm = nn.LayerNorm(dim)
        self._read = READOUTS[recipe.readout]
        self.head = GrowingLinear(dim * (len(self.position_ND) if recipe.readout == "tokens" else 1), bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        x_BND = self.tokens(residuals_BL) + self.position_ND
        if self.class_D is not None:
            x_BND = torch.cat([self.class_D.expand(len(x_BND), 1, -1), x_BND], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        logits_BC = self.head(self._read(self.norm(x_BND)))
        return logits_BC if self.skip is None else logits_BC + self.skip(residuals_BL)

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.skip is None else [self.head, self.skip]

    def routers(self) -> list[Router]:
        return self._routers


READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens": lambda x_BND: x_BND.flatten(1),
    "mean": lambda x_BND: x_BND.mean(dim=1),
    "class": lambda x_BND: x_BND[:, 0],
}
"""What the head reads of the tokens (B, N, D), by the name that a recipe has for it."""


def moe_vit(live: np.ndarray, recipe: Recipe) -> ViT:
    """With a Mixture of Experts in the blocks that the recipe names."""
    return ViT(live, recipe, partial(MoE, recipe=recipe))


def plain_vit(live: np.ndarray, recipe: Recipe) -> ViT:
    """With one MLP in their place, as wide as all experts together that a token goes through: the same operations."""

    def wide_mlp(in_features: int, hidden_features: int, **more: object) -> nn.Module:
        return Mlp(in_features, hidden_features * (recipe.top_k + recipe.shared_expert), **more)

    return ViT(live, recipe, wide_mlp)
