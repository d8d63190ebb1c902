"""ER-ACE: replay with an asymmetric cross-entropy, so that batches of the new run do not push the old runs' logits down.

    L = CE(f(x), y), x from the memory, every class with the same share,  +  log(1 + exp(-f_new(x))), x from the new run

f: the network's logits; f_new: that of the new run. Source: Caccia et al. 2022 (arXiv:2104.05025), eq. 3. As there, the new run
is in the memory from its first lumisection on. In the paper the new run's rows compete with classes not seen yet alone, whose
head rows exist; here one logit of zero stands for these, which makes the second term the softplus above. Where an experience
holds several labels, they compete with each other and no class is to come: the second term is their cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate


@register_method("er_ace")
class ErAce(Replay):
    """Replay, with a second batch a step from the new run alone."""

    name = "er_ace"
    _incoming: Iterator[Sequence[Tensor]]
    _unused_BL: Tensor
    _unused_B: Tensor
    """Rows and labels of the second batch that no part of the first one has been trained beside yet."""

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        lesson = strategy.experience
        self._incoming = lesson.of(lesson.incoming).batches()

    def before_training_iteration(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._unused_BL, self._unused_B = next(self._incoming)

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        part = len(strategy.mb_x)
        residuals_BL, self._unused_BL = self._unused_BL[:part], self._unused_BL[part:]
        label_B, self._unused_B = self._unused_B[:part], self._unused_B[part:]
        logits_BC = strategy.model(residuals_BL)
        several = len(strategy.experience.incoming) > 1
        strategy.loss = strategy.loss + (cross_entropy(logits_BC, label_B) if several else incoming_loss(logits_BC))

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._incoming = iter(())

    def lumisections_beside(self) -> int:
        return self.recipe.steps * self.recipe.batch


def incoming_loss(logits_BC: Tensor) -> Tensor:
    """log(1 + exp(-z)) for the logit z of the newest class, the mean over rows."""
    return torch.nn.functional.softplus(-logits_BC[:, -1]).mean()
