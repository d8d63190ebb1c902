"""Ensembles: the mean of the members' log-probabilities, which is the softmax of the mean of their logits.

    log p(c|x) = mean_k log p_k(c|x) + const(x),    softmax(mean_k z_k) = softmax(mean_k log softmax(z_k))

A mean of logarithms, not of probabilities, so that an ensemble has logits as any member has, for a softmax or a sigmoid. What
its cross-entropy lacks to be the mean of the members' own is the spread of the members (Krogh and Vedelsby 1995, Heskes 1998):

    mean_k CE(z_k) = CE(mean_k z_k) + mean_k logsumexp(z_k) - logsumexp(mean_k z_k)

Added to the loss, it makes each member learn as if it were alone, which is what an ensemble lives on. B maps, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def spread(logits_KBC: Tensor) -> Tensor:
    """What the mean of the members' cross-entropies is above that of their mean, over a batch: not negative, shape ()."""
    return (logits_KBC.logsumexp(dim=-1).mean(dim=0) - logits_KBC.mean(dim=0).logsumexp(dim=-1)).mean()


class Ensemble(nn.Module):
    """Whatever the members take, B rows of it, to the mean of their logits (B, C).

    `auxiliary_loss` is to be added to the cross-entropy of the last forward in training where each member is to learn alone.
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
        """`spread` of the last forward in training, 0 after one in evaluation."""
        return 0.0 if self._spread is None else self._spread
