"""A Mixture-of-Experts layer, in place of the MLP of a transformer block: a router, its experts, an optional shared expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqmstream.learners.networks.moe.config import MoEConfig
from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.moe.routers import ROUTERS


class MoE(nn.Module):
    """Tokens (B, N, D) to the weighted sum of what their experts make of them, (B, N, D).

    The shared expert, where the configuration has one, takes every token, and its output is added with weight one.
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
        config: MoEConfig,
    ) -> None:
        """The arguments up to `dtype` are those that timm's Block passes to its `mlp_layer`.

        Raises ValueError for a norm, for dropout and for experts without a bias, which are not implemented.
        """
        super().__init__()
        if norm_layer is not None or drop or not bias:
            raise ValueError("experts have a bias, and neither a norm nor dropout")
        self.router = ROUTERS[config.router](config, in_features, device, dtype)
        self.experts = Experts(config.experts, in_features, hidden_features, act_layer, device, dtype)
        self.shared = (
            nn.Sequential(
                nn.Linear(in_features, hidden_features, device=device, dtype=dtype),
                act_layer(),
                nn.Linear(hidden_features, in_features, device=device, dtype=dtype),
            )
            if config.shared_expert
            else None
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        y_BND: Tensor = self.router(x_BND, self.experts)
        return y_BND if self.shared is None else y_BND + self.shared(x_BND)
