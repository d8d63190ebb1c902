"""A-GEM: a step on the new run must not raise the loss on the memory, to first order.

    g <- g - (g·m / m·m) m    where g·m < 0

g: gradient of the cross-entropy on a batch of the new run; m: on a batch of the memory; both as one vector over all weights.
Source: Chaudhry et al. 2019 (arXiv:1812.00420), eq. 11. The first training has two runs and no memory. AdamW takes the step, so
the constraint holds for the gradient and not for the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate


@register_method("agem")
class Agem(Replay):
    """Replay's memory, which constrains the gradient and is not trained on."""

    name = "agem"
    _memory_batches: Iterator[Sequence[Tensor]] | None = None
    _beside = 0

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        lesson = strategy.experience
        self._beside = 0
        if lesson.known and lesson.old:
            self._memory_batches = lesson.of(lesson.old).batches()
            strategy.dataloader = lesson.of(lesson.incoming).batches()

    def lumisections_beside(self) -> int:
        return self._beside

    def after_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self._memory_batches is None:
            return
        residuals_BL, label_B = next(self._memory_batches)
        self._beside += len(label_B)
        weights = [weight for weight in strategy.model.parameters() if weight.grad is not None]
        loss = torch.nn.functional.cross_entropy(strategy.model(residuals_BL), label_B)
        memory = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for weight, projected in zip(weights, project([w.grad for w in weights if w.grad is not None], memory), strict=True):
            weight.grad = projected

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._memory_batches = None


def project(gradient: Sequence[Tensor], memory: Sequence[Tensor]) -> list[Tensor]:
    """The gradient without its component against the memory's gradient; unchanged where their product is not negative.

    Both are lists of tensors, one a weight, and count as one vector over all weights.
    """
    agreement = torch.stack([(g * m).sum() for g, m in zip(gradient, memory, strict=True)]).sum()
    length = torch.stack([m.square().sum() for m in memory]).sum().clamp_min(torch.finfo(torch.float32).tiny)
    share = (agreement / length).clamp_max(0.0)
    return [g - share * m for g, m in zip(gradient, memory, strict=True)]
