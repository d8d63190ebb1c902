"""Routers of a Mixture of Experts: which experts compute a token, and how the load on the experts is kept even.

`TopK` and `Balanced` choose k experts for each token and drop none. `Soft` gives each expert weighted means of the tokens.
Scores of a lumisection never depend on the other lumisections of its batch: routers with an expert capacity, and experts that
choose their tokens, would break that, and are not offered.

Letters at the end of a name are its axes: B lumisections, N tokens of one, T = B N tokens, D width, E experts, K choices of a
token, P places of an expert, Q = E P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqmstream.learners.networks.moe.config import MoEConfig
from dqmstream.learners.networks.moe.experts import Experts, counted


class Router(nn.Module, ABC):
    """Sends tokens to experts and combines what they return.

    Attributes
    ----------
    auxiliary_loss
        Term to be added to the loss of the last forward pass in training, None where there is none.
    experts
        Number of experts.
    """

    def __init__(
        self, config: MoEConfig, width: int, columns: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(columns, width, **made), std=0.02))
        self.experts = config.experts
        self.auxiliary_loss: Tensor | None = None

    @abstractmethod
    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        """Outputs of the experts, combined for each token: (B, N, D)."""

    @abstractmethod
    def shares(self, x_BND: Tensor) -> Tensor:
        """Weight of each expert in each token's output, (B, N, E); the weights of a token sum to one."""

    def after_step(self) -> None:
        """Called after each step of the optimizer."""
        self.auxiliary_loss = None

    def _logits(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Router logits in float32, also under autocast: rounding must not change which expert is chosen."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), (self.weight if weight is None else weight).float())


class TopK(Router):
    """The k experts of largest probability, weighted by it; two losses keep the load even and the logits small.

        L = a E sum_e f_e p_e + z mean (logsumexp logits)²

    f_e: share of the tokens' choices that expert e has; p_e: its mean probability; a, z: `aux_weight` and `z_weight`.
    Sources: Shazeer et al. 2017 (arXiv:1701.06538) for the layer, Fedus et al. 2021 (arXiv:2101.03961) for the first loss,
    Zoph et al. 2022 (arXiv:2202.08906) for the second.
    """

    def __init__(
        self, config: MoEConfig, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config, width, config.experts, device, dtype)
        self.top_k, self.aux_weight, self.z_weight = config.top_k, config.aux_weight, config.z_weight

    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        x_TD = x_BND.reshape(-1, x_BND.shape[-1])
        weight_TK, expert_TK = self.choose(x_TD)
        y_TD: Tensor = experts(x_TD, weight_TK, expert_TK)
        return y_TD.view_as(x_BND)

    def choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of each token's experts, which sum to one, and the experts, the most probable first: both (T, K)."""
        # Experts first: sums over a last axis of eight take three times as long as sums over the first.
        logits_ET = self._logits(x_TD).t().contiguous()
        probability_ET = logits_ET.softmax(dim=0)
        expert_TK = probability_ET.detach().t().contiguous().topk(self.top_k, dim=-1).indices
        weight_TK = probability_ET.t().gather(1, expert_TK)
        self.auxiliary_loss = self._losses(logits_ET, probability_ET, expert_TK) if self.training else None
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True), expert_TK

    def _losses(self, logits_ET: Tensor, probability_ET: Tensor, expert_TK: Tensor) -> Tensor:
        load_E = counted(expert_TK, self.experts) / expert_TK.numel()
        balance = self.experts * (load_E * probability_ET.mean(dim=1)).sum()
        return self.aux_weight * balance + self.z_weight * logits_ET.logsumexp(dim=0).square().mean()

    def shares(self, x_BND: Tensor) -> Tensor:
        weight_TK, expert_TK = self.choose(x_BND.reshape(-1, x_BND.shape[-1]))
        share_TE = weight_TK.new_zeros(len(weight_TK), self.experts).scatter(1, expert_TK, weight_TK)
        return share_TE.view(*x_BND.shape[:2], -1)


class Balanced(TopK):
    """Top-k without a balancing loss: a bias on the choice, not on the weights, favours experts with too little load.

        b_e <- b_e + u sign(mean load - load_e)    after each training step

    b_e is added to the probability of expert e when experts are chosen; u: `bias_rate`. Source: Wang et al. 2024
    (arXiv:2408.15664), with the softmax's probabilities as affinities.
    """

    def __init__(
        self, config: MoEConfig, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config, width, device, dtype)
        self.rate = config.bias_rate
        self.bias_E: Tensor
        self.load_E: Tensor
        self.register_buffer("bias_E", torch.zeros(config.experts, device=device))
        self.register_buffer("load_E", torch.zeros(config.experts, device=device), persistent=False)

    def choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        probability_TE = self._logits(x_TD).t().contiguous().softmax(dim=0).t()
        score_TE = probability_TE.detach() + self.bias_E
        expert_TK = score_TE.contiguous().topk(self.top_k, dim=-1).indices
        if self.training:
            self.load_E += counted(expert_TK, self.experts)
        weight_TK = probability_TE.gather(1, expert_TK)
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True), expert_TK

    def after_step(self) -> None:
        self.bias_E += self.rate * (self.load_E.mean() - self.load_E).sign()
        self.load_E.zero_()


class Soft(Router):
    """Soft MoE: each place of an expert holds a weighted mean over the tokens of one lumisection.

        x̃_p = sum_n softmax_n(l_np) x_n,    y_n = sum_p softmax_p(l_np) expert(x̃_p),    l = s x̂ φ̂

    x_n: token n; x̃_p: input of place p; y_n: output of token n; x̂, φ̂: tokens and router rows scaled to length one; s: a learnt
    scale. No token is dropped and no load needs balancing. Source: Puigcerver et al. 2023 (arXiv:2308.00951).
    """

    def __init__(
        self, config: MoEConfig, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config, width, config.experts * config.places, device, dtype)
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        batch, _, width = x_BND.shape
        logits_BNQ = self._of_places(x_BND)
        x_BQD = logits_BNQ.softmax(dim=1).transpose(1, 2).to(x_BND.dtype) @ x_BND
        x_EPD = x_BQD.view(batch, self.experts, -1, width).transpose(0, 1).reshape(self.experts, -1, width)
        y_EBPD = experts.of_places(x_EPD).view(self.experts, batch, -1, width)
        y_BQD = y_EBPD.transpose(0, 1).reshape(batch, -1, width)
        return logits_BNQ.softmax(dim=2).to(y_BQD.dtype) @ y_BQD

    def _of_places(self, x_BND: Tensor) -> Tensor:
        """Logits of each token and place, (B, N, Q)."""
        return self.scale * self._logits(F.normalize(x_BND.float(), dim=-1), F.normalize(self.weight, dim=-1))

    def shares(self, x_BND: Tensor) -> Tensor:
        return self._of_places(x_BND).softmax(dim=2).unflatten(2, (self.experts, -1)).sum(dim=-1)


ROUTERS: dict[str, Callable[..., Router]] = {"top_k": TopK, "balanced": Balanced, "soft": Soft}
"""Routers by the name that a configuration gives."""
