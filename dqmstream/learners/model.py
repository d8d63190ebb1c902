"""The deep learner's own network: a Mixture-of-Experts vision transformer whose head sees every token in its place.

Its input are residuals to the reference, one number for each live channel. Measured: averaging the tokens, or reading a class
token, loses what a single channel says, so the head reads all of them side by side. What one channel says alone takes a short
way, a linear map from the residuals to the logits; what several say together takes the transformer.

B lumisections, L live channels, N tokens, D width, C classes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dqmstream.learners.moe import MoE
from dqmstream.learners.network import GrowingLinear, Network
from dqmstream.learners.recipe import Recipe
from dqmstream.lumisection import N_IETA, N_IPHI


class MoEViT(Network):
    """A `Network` of tokens, each a patch of cells; depths are the input's channels.

    Tokens in which no channel is live are left out: of HE's 64 only 32 hold one.
    """

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        depths = live.shape[0]
        rows, columns = N_IETA // recipe.patch[0], N_IPHI // recipe.patch[1]
        by_patch = live.reshape(depths, rows, recipe.patch[0], columns, recipe.patch[1])
        tokens = np.flatnonzero(by_patch.any(axis=(0, 2, 4)).ravel())
        self.register_buffer("token_N", torch.from_numpy(tokens), persistent=False)
        self.embed = PatchEmbed((N_IETA, N_IPHI), recipe.patch, depths, recipe.dim)
        self.position_ND = nn.Parameter(nn.init.trunc_normal_(torch.empty(len(tokens), recipe.dim), std=0.02))
        experts = partial(
            MoE,
            experts=recipe.experts,
            top_k=recipe.top_k,
            aux_weight=recipe.aux_weight,
            z_weight=recipe.z_weight,
        )
        plain = partial(Block, recipe.dim, recipe.heads, mlp_ratio=recipe.mlp_ratio, qkv_bias=True)
        every = recipe.moe_every
        self.blocks = nn.ModuleList(
            plain(mlp_layer=experts) if i % every == every - 1 else plain() for i in range(recipe.depth)
        )
        self.norm = nn.LayerNorm(recipe.dim)
        self.head = GrowingLinear(len(tokens) * recipe.dim, bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        x_BND = self.embed(self.to_map(residuals_BL)).index_select(1, self.token_N) + self.position_ND
        for block in self.blocks:
            x_BND = block(x_BND)
        logits_BC = self.head(self.norm(x_BND).flatten(1))
        return logits_BC if self.skip is None else logits_BC + self.skip(residuals_BL)

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.skip is None else [self.head, self.skip]

    def mixtures(self) -> list[MoE]:
        """The Mixture-of-Experts layers, first to last."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def auxiliary_loss(self) -> Tensor | float:
        """Sum of what the routers add to the loss of the last forward in training."""
        return sum(mixture.auxiliary_loss for mixture in self.mixtures() if mixture.auxiliary_loss is not None)

    def notes(self) -> dict[str, float | list[float]]:
        """Load of each expert and mean entropy of the routing in the last forward, by mixture."""
        notes: dict[str, float | list[float]] = {}
        for i, mixture in enumerate(self.mixtures()):
            notes[f"expert_load.{i}"] = mixture.load_E.tolist()
            notes[f"routing_entropy.{i}"] = float(mixture.entropy)
        return notes
