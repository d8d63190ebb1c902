"""ER-ACE: replay with an asymmetric cross-entropy, by which the new run's rows do not push the old ones' logits down.

    L = CE(f(x)[all], y)  x from the memory, every class with the same share  +  CE(f(x)[new, unseen], y)  x from the new run

Source: Caccia et al. 2022 (arXiv:2104.05025), eq. 3. The new run is in the memory from its first lumisection on, as there. Its
incoming rows compete with what was not known before alone: in the authors' code rows of the head for classes to come. Ours has
none yet; they would be zero, so one logit of zero stands for them. Without it the second term would vanish, since a run is a
single class. Where the new run is left out of the first term instead, it is never named (8 runs of `small`, seed 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.trainer import RunTemplate


class ErAce(Replay):
    """Replay, and beside each of its batches one of the new run alone."""

    name = "er_ace"
    _incoming: Iterator[Sequence[Tensor]]
    _left_BL: Tensor
    """Of the batch of the new run alone, what no part of the batch beside it has been trained with yet."""

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._incoming = strategy.experience.of([strategy.model.classes - 1]).batches()

    def before_training_iteration(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._left_BL, _ = next(self._incoming)

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        part = len(strategy.mb_x)
        residuals_BL, self._left_BL = self._left_BL[:part], self._left_BL[part:]
        strategy.loss = strategy.loss + incoming_loss(strategy.model(residuals_BL))

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._incoming = iter(())

    def lumisections_beside(self) -> int:
        return self.recipe.steps * self.recipe.batch


def incoming_loss(logits_BC: Tensor) -> Tensor:
    """Cross-entropy of rows of the newest class among it and what is unseen: log(1 + exp(-its logit)), the mean over rows."""
    return torch.nn.functional.softplus(-logits_BC[:, -1]).mean()
