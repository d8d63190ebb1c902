"""Who computes a token: routers by name, each of which has its own way to share tokens among the experts and to keep them busy.

`TopK` and `Balanced` are token choice without dropping: every token gets its k experts however many others want them. `Soft`
mixes the tokens of one lumisection into places. With all of them what a lumisection is given never depends on its batch-mates,
which capacities and experts that choose their tokens would break.

Letters at the end of a name are its axes: B lumisections, N tokens of one, T = B N tokens, D width, E experts, K choices of a
token, P places of an expert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqmstream.errors import StateError
from dqmstream.learners.networks.moe.experts import Experts, counted, with_copy
from dqmstream.learners.networks.recipe import Recipe


class Router(nn.Module, ABC):
    """Sends tokens to experts and brings back what they say.

    After a forward in training `auxiliary_loss` holds what is to be added to the loss, where there is something.
    frozen: whether what it has learnt stays as it is. family_E: of each expert the one that it was split from, itself where it
    was there from the start.
    """

    def __init__(
        self, recipe: Recipe, width: int, columns: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(columns, width, **made), std=0.02))
        self.family_E: Tensor
        self._grows = recipe.grow_experts > 0
        self.register_buffer("family_E", torch.arange(recipe.experts, device=device), persistent=self._grows)
        self.auxiliary_loss: Tensor | None = None
        self.frozen = False

    @abstractmethod
    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        """What the experts make of each token: (B, N, D)."""

    @abstractmethod
    def shares(self, x_BND: Tensor) -> Tensor:
        """How much of a token each expert has; they add up to one: (B, N, E)."""

    @abstractmethod
    def split(self, expert: int, towards_D: Tensor) -> None:
        """Know one more expert, of this one's family; its logit is the other's and the token's component along `towards_D`."""

    def check_families(self, founders: int) -> None:
        """Raise StateError if no such router can have these families: each expert is its own, or of one of so many founders."""
        family = self.family_E.tolist()
        fits = all(0 <= first < founders or first == expert for expert, first in enumerate(family))
        if family[:founders] != list(range(founders)) or not fits:
            raise StateError(f"the state's experts descend from {family}, of {founders} that there were; it is damaged")

    def after_step(self) -> None:
        """Called when the optimizer has moved the weights."""
        self.auxiliary_loss = None

    def _logits(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """In float32 whatever the model computes in: a choice must not hang on rounding."""
        weight = self.weight if weight is None else weight
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), (weight.detach() if self.frozen else weight).float())


class TopK(Router):
    """The k experts of the largest probability, weighted by it; two losses keep the load even and the logits small.

        L = a E sum_e f_e p_e + z mean (logsumexp logits)²

    f_e: share of the slots that expert e has, p_e: its mean probability. Of a family of experts, which one was split into, a
    token sees only the one with the largest logit: with its choices it would otherwise take both halves of what it had one of,
    and lose another expert for it. Source: Shazeer et al. 2017 (arXiv:1701.06538) for the layer, Fedus et al. 2021
    (arXiv:2101.03961) for the first loss, Zoph et al. 2022 (arXiv:2202.08906) for the second; families are ours.
    """

    def __init__(
        self, recipe: Recipe, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(recipe, width, recipe.experts, device, dtype)
        self.top_k, self.aux_weight, self.z_weight = recipe.top_k, recipe.aux_weight, recipe.z_weight

    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        x_TD = x_BND.reshape(-1, x_BND.shape[-1])
        weight_TK, expert_TK = self.choose(x_TD)
        return experts(x_TD, weight_TK, expert_TK).view_as(x_BND)

    def choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of each token's experts, which add up to one, and the experts, the first the most probable: both (T, K)."""
        # Experts first: sums over a last axis of eight take three times as long as sums over the first.
        logits_ET = self._one_of_a_family(self._logits(x_TD).t().contiguous())
        probability_ET = logits_ET.softmax(dim=0)
        expert_TK = probability_ET.detach().t().contiguous().topk(self.top_k, dim=-1).indices
        weight_TK = probability_ET.t().gather(1, expert_TK)
        balanced = self.training and not self.frozen
        self.auxiliary_loss = self._losses(logits_ET, probability_ET, expert_TK) if balanced else None
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True), expert_TK

    def _one_of_a_family(self, logits_ET: Tensor, bias_E: Tensor | None = None) -> Tensor:
        """The logits, and -inf for all of a family but the one with the largest, with its bias; the first if they are equal."""
        if not self._grows:
            return logits_ET
        score_ET = logits_ET.detach() if bias_E is None else logits_ET.detach() + bias_E[:, None]
        family_ET = self.family_E[:, None].expand_as(score_ET)
        best_ET = torch.zeros_like(score_ET).scatter_reduce(0, family_ET, score_ET, "amax", include_self=False)
        number_E1 = torch.arange(len(score_ET), device=score_ET.device)[:, None]
        last = len(score_ET)
        best_number_ET = torch.where(score_ET < best_ET.gather(0, family_ET), last, number_E1)
        first_ET = torch.full_like(family_ET, last).scatter_reduce(0, family_ET, best_number_ET, "amin")
        return logits_ET.masked_fill(first_ET.gather(0, family_ET) != number_E1, -torch.inf)

    @torch.no_grad()
    def split(self, expert: int, towards_D: Tensor) -> None:
        weight = with_copy(self.weight, expert)
        weight[-1] += towards_D
        self.weight = nn.Parameter(weight)
        self.family_E = with_copy(self.family_E, expert)

    def _losses(self, logits_ET: Tensor, probability_ET: Tensor, expert_TK: Tensor) -> Tensor:
        experts = len(probability_ET)
        load_E = counted(expert_TK, experts) / expert_TK.numel()
        balance = experts * (load_E * probability_ET.mean(dim=1)).sum()
        return self.aux_weight * balance + self.z_weight * logits_ET.logsumexp(dim=0).square().mean()

    def shares(self, x_BND: Tensor) -> Tensor:
        weight_TK, expert_TK = self.choose(x_BND.reshape(-1, x_BND.shape[-1]))
        share_TE = weight_TK.new_zeros(len(weight_TK), len(self.weight)).scatter(1, expert_TK, weight_TK)
        return share_TE.view(*x_BND.shape[:2], -1)


class Balanced(TopK):
    """Top-k without a balancing loss: a bias moves the choice, and only the choice, towards experts that had too little.

        b_e <- b_e + u sign(mean load - load_e)    after each training step

    Source: Wang et al. 2024 (arXiv:2408.15664), with the softmax's probabilities for affinities.
    """

    def __init__(
        self, recipe: Recipe, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(recipe, width, device, dtype)
        self.rate = recipe.bias_rate
        self.bias_E: Tensor
        self.load_E: Tensor
        self.register_buffer("bias_E", torch.zeros(recipe.experts, device=device))
        self.register_buffer("load_E", torch.zeros(recipe.experts, device=device), persistent=False)

    def choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        logits_ET = self._one_of_a_family(self._logits(x_TD).t().contiguous(), self.bias_E)
        probability_TE = logits_ET.softmax(dim=0).t()
        score_TE = probability_TE.detach() + self.bias_E
        if self._grows:
            score_TE = score_TE.masked_fill(logits_ET.t() == -torch.inf, -torch.inf)
        expert_TK = score_TE.contiguous().topk(self.top_k, dim=-1).indices
        if self.training:
            self.load_E += counted(expert_TK, len(self.load_E))
        weight_TK = probability_TE.gather(1, expert_TK)
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True), expert_TK

    def split(self, expert: int, towards_D: Tensor) -> None:
        super().split(expert, towards_D)
        self.bias_E = with_copy(self.bias_E, expert)
        self.load_E = torch.zeros_like(self.bias_E)

    def after_step(self) -> None:
        if not self.frozen:
            self.bias_E += self.rate * (self.load_E.mean() - self.load_E).sign()
        self.load_E.zero_()


class Soft(Router):
    """Soft MoE: each place of an expert holds a mean over the tokens of one lumisection, each token a mean over the places.

        x̃_p = sum_n softmax_n(l_np) x_n,    y_n = sum_p softmax_p(l_np) expert(x̃_p),    l = s x̂ φ̂

    x̂, φ̂: of length one; s: learnt. Nothing is dropped and nothing needs to be balanced. Source: Puigcerver et al. 2023
    (arXiv:2308.00951).
    """

    def __init__(
        self, recipe: Recipe, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(recipe, width, recipe.experts * recipe.places, device, dtype)
        self.experts = recipe.experts
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def forward(self, x_BND: Tensor, experts: Experts) -> Tensor:
        batch, _, width = x_BND.shape
        logits_BNQ = self._of_places(x_BND)  # Q = E P places
        x_BQD = logits_BNQ.softmax(dim=1).transpose(1, 2).to(x_BND.dtype) @ x_BND
        x_EPD = x_BQD.view(batch, self.experts, -1, width).transpose(0, 1).reshape(self.experts, -1, width)
        y_EBPD = experts.of_places(x_EPD).view(self.experts, batch, -1, width)
        y_BQD = y_EBPD.transpose(0, 1).reshape(batch, -1, width)
        return logits_BNQ.softmax(dim=2).to(y_BQD.dtype) @ y_BQD

    def split(self, expert: int, towards_D: Tensor) -> None:
        raise NotImplementedError("every expert more would make all steps of Soft MoE dearer: recipes refuse to grow it")

    def _of_places(self, x_BND: Tensor) -> Tensor:
        scale = self.scale.detach() if self.frozen else self.scale
        return scale * self._logits(F.normalize(x_BND.float(), dim=-1), F.normalize(self.weight, dim=-1))

    def shares(self, x_BND: Tensor) -> Tensor:
        return self._of_places(x_BND).softmax(dim=2).unflatten(2, (self.experts, -1)).sum(dim=-1)


ROUTERS: dict[str, Callable[..., Router]] = {"top_k": TopK, "balanced": Balanced, "soft": Soft}
"""Routers by the name that a recipe has for them."""
