"""A-GEM: a step on the new run may not raise the loss on the memory; where it would, that part of the gradient is taken out.

    g <- g - (g·m / m·m) m   where g·m < 0,    g: gradient of CE on the new run,  m: of CE on a batch of the memory

Source: Chaudhry et al. 2019 (arXiv:1812.00420), eq. 11. One constraint for all past runs together: nothing to solve.
The first training has two runs and no past. AdamW takes the step, so the constraint holds for the gradient that it is given.
It does not hold the past here: the new run's batches have one label, whose free row of the head wins wherever it pleases, and a
step that is merely not against the memory's gradient lets it (8 runs of `small`, seeds 0 and 1: .16 and .27, chance .125).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.trainer import RunTemplate


class Agem(Replay):
    """Replay's memory; it is never trained on, but says which way not to go."""

    name = "agem"
    _memory_batches: Iterator[Sequence[Tensor]] | None = None
    _asked = 0

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        lesson = strategy.experience
        *old, new = lesson.classes
        self._asked = 0
        if new > 1:
            self._memory_batches = lesson.of(old).batches()
            strategy.dataloader = lesson.of([new]).batches()

    def lumisections_beside(self) -> int:
        return self._asked

    def after_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self._memory_batches is None:
            return
        residuals_BL, label_B = next(self._memory_batches)
        self._asked += len(label_B)
        weights = [weight for weight in strategy.model.parameters() if weight.grad is not None]
        loss = torch.nn.functional.cross_entropy(strategy.model(residuals_BL), label_B)
        memory = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for weight, projected in zip(weights, project([w.grad for w in weights], memory), strict=True):
            weight.grad = projected

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._memory_batches = None


def project(gradient: Sequence[Tensor], memory: Sequence[Tensor]) -> list[Tensor]:
    """The gradient without its part against the memory's, both as one vector over all weights; as it is where they agree."""
    agreement = torch.stack([(g * m).sum() for g, m in zip(gradient, memory, strict=True)]).sum()
    length = torch.stack([m.square().sum() for m in memory]).sum().clamp_min(np.finfo(np.float32).tiny)
    share = (agreement / length).clamp_max(0.0)
    return [g - share * m for g, m in zip(gradient, memory, strict=True)]
