"""Ensembles: the mean of the members' logits, whose softmax is that of the mean of their log-probabilities.

    log p(c|x) = mean_k log p_k(c|x) + const(x),    softmax(mean_k z_k) = softmax(mean_k log softmax(z_k))

z_k: logits of member k, p_k: its probabilities. The mean of the members' cross-entropies is that of the mean plus the spread of
the members (Krogh and Vedelsby 1995, Heskes 1998):

    mean_k CE(z_k) = CE(mean_k z_k) + mean_k logsumexp(z_k) - logsumexp(mean_k z_k)

With the spread added to the loss, each member is trained as if it were alone. B maps, K members, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def spread(logits_KBC: Tensor) -> Tensor:
    """Mean over a batch of mean_k logsumexp(z_k) - logsumexp(mean_k z_k): not negative, shape ()."""
    return (logits_KBC.logsumexp(dim=-1).mean(dim=0) - logits_KBC.mean(dim=0).logsumexp(dim=-1)).mean()


class Ensemble(nn.Module):
    """The input of the members, B rows, to the mean of their logits (B, C).

    `auxiliary_loss`, added to the cross-entropy of the last forward pass in training, trains each member as if it were alone.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._spread: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits_KBC = torch.stack([member(x) for member in self.members])
        self._spread = spread(logits_KBC) if self.training else None
        return logits_KBC.mean(dim=0)

    def auxiliary_loss(self) -> Tensor | float:
        """`spread` of the last forward pass; 0 if that was in evaluation mode."""
        return 0.0 if self._spread is None else self._spread
