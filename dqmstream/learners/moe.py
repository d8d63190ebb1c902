"""A Mixture of Experts in place of a transformer block's MLP: each token is sent to the few experts that its router prefers.

Token choice without dropping: every token gets its k experts however many others want them, so what a lumisection is given
never depends on its batch-mates. Source: Shazeer et al. 2017 (arXiv:1701.06538) for the layer, Fedus et al. 2021
(arXiv:2101.03961) for the balancing loss, Zoph et al. 2022 (arXiv:2202.08906) for the z-loss.

Letters at the end of a name are its axes: B lumisections, N tokens of one, T = B N tokens, D width, H hidden width,
E experts, K choices of a token, S = T K slots (a token and one of its choices).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MoE(nn.Module):
    """E experts (two layers and a GELU each) and a router that sends each token to k of them.

    After a forward `load_E` is the share of slots that each expert had and `entropy` the mean entropy of the routing
    probabilities in nats; in training `auxiliary_loss` holds what is to be added to the loss.
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
        experts: int = 8,
        top_k: int = 2,
        aux_weight: float = 0.01,
        z_weight: float = 1e-3,
    ) -> None:
        """The arguments up to `dtype` are those that timm's Block gives to its mlp_layer; norm and dropout are not offered."""
        super().__init__()
        if norm_layer is not None or drop or not bias:
            raise ValueError("experts have a bias, and neither a norm nor dropout")
        self.top_k, self.aux_weight, self.z_weight = top_k, aux_weight, z_weight
        zeros = partial(torch.zeros, device=device, dtype=dtype)
        self.router = nn.Linear(in_features, experts, bias=False, device=device, dtype=dtype)
        self.up_EHD = nn.Parameter(zeros(experts, hidden_features, in_features))
        self.up_bias_EH = nn.Parameter(zeros(experts, hidden_features))
        self.down_EDH = nn.Parameter(zeros(experts, in_features, hidden_features))
        self.down_bias_ED = nn.Parameter(zeros(experts, in_features))
        self.act = act_layer()
        for weight in (self.router.weight, self.up_EHD, self.down_EDH):
            nn.init.trunc_normal_(weight, std=0.02)
        self.auxiliary_loss: Tensor | None = None
        self.load_E = torch.full((experts,), 1 / experts)
        self.entropy = torch.zeros(())

    def forward(self, x_BND: Tensor) -> Tensor:
        x_TD = x_BND.reshape(-1, x_BND.shape[-1])
        weight_TK, expert_TK = self.route(x_TD)
        return self.compute(x_TD, weight_TK, expert_TK).view_as(x_BND)

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of each token and their weights, which add up to one; in float32 whatever the model computes in."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.router.weight.float())
        probability_TE = logits_TE.softmax(dim=-1)
        weight_TK, expert_TK = probability_TE.topk(self.top_k, dim=-1)
        self._record(logits_TE, probability_TE, expert_TK)
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True), expert_TK

    def _record(self, logits_TE: Tensor, probability_TE: Tensor, expert_TK: Tensor) -> None:
        experts = probability_TE.shape[-1]
        self.load_E = torch.bincount(expert_TK.reshape(-1), minlength=experts) / expert_TK.numel()
        self.entropy = -torch.special.xlogy(probability_TE, probability_TE).sum(dim=-1).mean().detach()
        if self.training:
            balance = experts * (self.load_E * probability_TE.mean(dim=0)).sum()
            z = logits_TE.logsumexp(dim=-1).square().mean()
            self.auxiliary_loss = self.aux_weight * balance + self.z_weight * z

    def compute(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Each expert on its own tokens: the slots are sorted by expert, computed in turn, and sorted back.

        Adding a token's k slots side by side needs no atomics, so the sum is the same in every run.
        """
        tokens, width = x_TD.shape
        expert_S = expert_TK.reshape(-1)
        order_S = torch.argsort(expert_S, stable=True)
        x_SD = x_TD[:, None].expand(-1, self.top_k, -1).reshape(-1, width).index_select(0, order_S)
        share_E = torch.bincount(expert_S, minlength=len(self.up_EHD)).tolist()
        # unbind, not indexing: its backward writes the gradient of all experts once instead of E times.
        parts = zip(
            x_SD.split(share_E),
            self.up_EHD.unbind(),
            self.up_bias_EH.unbind(),
            self.down_EDH.unbind(),
            self.down_bias_ED.unbind(),
            strict=True,
        )
        y_SD = torch.cat([F.linear(self.act(F.linear(x, up, b)), down, c) for x, up, b, down, c in parts])
        y_TKD = y_SD.index_select(0, torch.argsort(order_S)).view(tokens, self.top_k, width)
        return (y_TKD * weight_TK[..., None].to(y_TKD.dtype)).sum(dim=1)

    def compute_dense(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """The same by computing every expert on every token: what `compute` is checked against."""
        gate_TE = torch.zeros(len(x_TD), len(self.up_EHD), dtype=weight_TK.dtype, device=x_TD.device)
        gate_TE = gate_TE.scatter(1, expert_TK, weight_TK).to(x_TD.dtype)
        hidden_TEH = self.act(torch.einsum("td,ehd->teh", x_TD, self.up_EHD) + self.up_bias_EH)
        y_TED = torch.einsum("teh,edh->ted", hidden_TEH, self.down_EDH) + self.down_bias_ED
        return torch.einsum("te,ted->td", gate_TE, y_TED)
