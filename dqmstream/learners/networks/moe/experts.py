"""The experts of a mixture: E two-layer networks of one shape, and three ways to compute those that the tokens have chosen.

The three agree to rounding, in value and in gradient. `loop` computes one expert after another, each on its own tokens.
`grouped` computes all of them in one grouped matrix product, without a transfer to the host; it needs a GPU of compute
capability 9.0 or later. `dense` computes every expert on every token, and is the reference that the others are tested against;
on a GPU it is the fastest one for small layers.

Letters at the end of a name are its axes: T tokens, D width, H hidden width, E experts, K choices of a token, S = T K slots (a
token and one of its choices), P places of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE_PRODUCTS = {torch.float32: 10**10, torch.bfloat16: 4 * 10**9}
"""Multiplications up to which `dense` is fastest on a GPU, by dtype; `python -m benchmarks.gpu --only experts` measures it."""


class Experts(nn.Module):
    """E experts: two linear layers with biases, and an activation between them.

    computation: loop, grouped or dense; empty for the fastest on the input's device.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        act: type[nn.Module] = nn.GELU,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.up_EHD = nn.Parameter(nn.init.trunc_normal_(torch.empty(experts, hidden, width, **made), std=0.02))
        self.up_bias_EH = nn.Parameter(torch.zeros(experts, hidden, **made))
        self.down_EDH = nn.Parameter(nn.init.trunc_normal_(torch.empty(experts, width, hidden, **made), std=0.02))
        self.down_bias_ED = nn.Parameter(torch.zeros(experts, width, **made))
        self.act = act()
        self.computation = ""

    def __len__(self) -> int:
        return len(self.up_EHD)

    def forward(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Weighted sum of the outputs of each token's chosen experts: (T, D)."""
        ways = {"loop": self.loop, "grouped": self.grouped, "dense": self.dense}
        return ways[self.computation or self.fastest(x_TD)](x_TD, weight_TK, expert_TK)

    def fastest(self, x_TD: Tensor) -> str:
        """The computation that is fastest for this input: loop, grouped or dense."""
        if x_TD.device.type != "cuda":
            return "loop"
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_TD.dtype
        if len(x_TD) * self.up_EHD.numel() <= DENSE_PRODUCTS.get(dtype, 0):
            return "dense"
        tensor_cores = torch.cuda.get_device_capability(x_TD.device) >= (9, 0)
        return "grouped" if dtype == torch.bfloat16 and tensor_cores else "loop"

    def loop(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Each expert in turn on its own slots: slots sorted by expert are contiguous."""
        slots = _Slots(expert_TK, len(self))
        # unbind, not indexing: its backward writes the gradient of all experts once, indexing E times.
        parts = zip(
            slots.sort(x_TD).split(slots.share_E.tolist()),
            self.up_EHD.unbind(),
            self.up_bias_EH.unbind(),
            self.down_EDH.unbind(),
            self.down_bias_ED.unbind(),
            strict=True,
        )
        y_SD = torch.cat([F.linear(self.act(F.linear(x, up, b)), down, c) for x, up, b, down, c in parts])
        return slots.combine(y_SD, weight_TK)

    def grouped(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Two grouped products over slots sorted by expert; `offs` holds the end of each expert's slots.

        `grouped_mm` has no gradient for its bias and ignores autocast. So biases are added by a product with one-hot rows, and
        the cast to the autocast dtype is explicit.
        """
        slots = _Slots(expert_TK, len(self))
        kind = x_TD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TD.dtype
        end_E = slots.share_E.cumsum(0).to(torch.int32)
        is_SE = F.one_hot(slots.expert_S, len(self)).to(dtype)
        up_EDH, down_EHD = self.up_EHD.to(dtype).transpose(1, 2), self.down_EDH.to(dtype).transpose(1, 2)
        hidden_SH = F.grouped_mm(slots.sort(x_TD).to(dtype), up_EDH, offs=end_E) + is_SE @ self.up_bias_EH.to(dtype)
        y_SD = F.grouped_mm(self.act(hidden_SH), down_EHD, offs=end_E) + is_SE @ self.down_bias_ED.to(dtype)
        return slots.combine(y_SD, weight_TK)

    def dense(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Every expert on every token, with weight zero for experts that a token has not chosen."""
        gate_TE = torch.zeros(len(x_TD), len(self), dtype=weight_TK.dtype, device=x_TD.device)
        gate_TE = gate_TE.scatter(1, expert_TK, weight_TK)
        hidden_TEH = self.act(F.linear(x_TD, self.up_EHD.flatten(0, 1), self.up_bias_EH.flatten())).unflatten(
            1, (len(self), -1)
        )
        # Weights are applied before the second layer, so that one product sums over experts and hidden width.
        weighted_TX = (hidden_TEH * gate_TE[..., None].to(hidden_TEH.dtype)).flatten(1)
        y_TD = F.linear(weighted_TX, self.down_EDH.transpose(0, 1).flatten(1))
        return y_TD + gate_TE.to(y_TD.dtype) @ self.down_bias_ED.to(y_TD.dtype)

    def of_places(self, x_EPD: Tensor) -> Tensor:
        """Each expert on its own P rows: (E, P, D)."""
        hidden_EPH = self.act(torch.baddbmm(self.up_bias_EH[:, None], x_EPD, self.up_EHD.transpose(1, 2)))
        return torch.baddbmm(self.down_bias_ED[:, None], hidden_EPH, self.down_EDH.transpose(1, 2))


def counted(expert: Tensor, experts: int) -> Tensor:
    """How often each expert is named: (E,)."""
    expert_S = expert.reshape(-1)
    if expert.device.type == "cpu":
        return torch.bincount(expert_S, minlength=experts)
    # On a GPU bincount would make the host wait for the largest number.
    return (torch.arange(experts, device=expert.device)[:, None] == expert_S).sum(dim=1)


class _Slots:
    """Slots sorted by expert. share_E: number of slots of each expert; expert_S: the expert of each slot."""

    def __init__(self, expert_TK: Tensor, experts: int) -> None:
        expert_S = expert_TK.reshape(-1)
        # Bytes are sorted by counting, in a tenth of the time.
        order_S = torch.argsort(expert_S.to(torch.uint8), stable=True)
        self.share_E = counted(expert_S, experts)
        self.expert_S = expert_S.index_select(0, order_S)
        self._choices = expert_TK.shape[1]
        self._token_S = order_S // self._choices
        self._place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))

    def sort(self, x_TD: Tensor) -> Tensor:
        """The token of each slot: (S, D)."""
        gathered: Tensor = _Gather.apply(x_TD, self._token_S, self._place_S, self._choices)
        return gathered

    def combine(self, y_SD: Tensor, weight_TK: Tensor) -> Tensor:
        """Weighted sum over the slots of each token, (T, D); without atomic additions, so it is reproducible to the bit."""
        y_TKD = y_SD.index_select(0, self._place_S).view(-1, self._choices, y_SD.shape[-1])
        return (y_TKD * weight_TK[..., None].to(y_TKD.dtype)).sum(dim=1)


class _Gather(torch.autograd.Function):
    """Rows of x_TD by slot; the backward pass gathers too, where that of `index_select` would scatter."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_S: Tensor, place_S: Tensor, choices: int) -> Tensor:
        ctx.save_for_backward(place_S)
        ctx.choices = choices
        return x_TD.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        (place_S,) = ctx.saved_tensors
        grad_SD: Tensor = grad_outputs[0]
        grad_TKD = grad_SD.index_select(0, place_S).view(-1, ctx.choices, grad_SD.shape[-1])
        return grad_TKD.sum(dim=1), None, None, None
