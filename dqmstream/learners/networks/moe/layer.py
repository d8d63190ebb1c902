"""A Mixture of Experts in place of a transformer block's MLP: a router, its experts, and perhaps one that every token takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.moe.routers import ROUTERS
from dqmstream.learners.networks.recipe import Recipe


class MoE(nn.Module):
    """Experts (two layers each) and the router that shares tokens (B, N, D) among them; a token's shares are added.

    shared: an expert beside them that every token goes through, None where the recipe has none (Dai et al. 2024,
    arXiv:2401.06066).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] | None = None,
        bias: bool = True,
        drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        recipe: Recipe,
    ) -> None:
        """The arguments up to `dtype` are those that timm's Block gives to its mlp_layer; norm and dropout are not offered."""
        super().__init__()
        if norm_layer is not None or drop or not bias:
            raise ValueError("experts have a bias, and neither a norm nor dropout")
        self.router = ROUTERS[recipe.router](recipe, in_features, device, dtype)
        self.experts = Experts(recipe.experts, in_features, hidden_features, act_layer, device, dtype)
        self.shared = (
            nn.Sequential(
                nn.Linear(in_features, hidden_features, device=device, dtype=dtype),
                act_layer(),
                nn.Linear(hidden_features, in_features, device=device, dtype=dtype),
            )
            if recipe.shared_expert
            else None
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        y_BND: Tensor = self.router(x_BND, self.experts)
        return y_BND if self.shared is None else y_BND + self.shared(x_BND)

    def split(self, expert: int, towards_D: Tensor) -> None:
        """Split an expert in two of one family; the new one, the last, has its tokens on that side of it."""
        self.router.split(expert, towards_D)
        self.experts.clone(expert)
