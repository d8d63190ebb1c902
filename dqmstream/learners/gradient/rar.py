"""Repeated augmented rehearsal: several steps on each batch of the new run, each with other exemplars and other augmentations.

    for each batch x of the new run:  repeats times:  L = CE(f(a(x)), y) + CE(f(a(x')), y')

f: the network's logits; x': a batch of the same size from the memory, drawn anew at each repeat; a: an augmentation, drawn anew
too. Source: Zhang et al. 2022 (NeurIPS, "A simple but strong baseline for online continual learning: Repeated Augmented
Rehearsal"). Both batches are half of a batch of the recipe, and the steps are the recipe's, so
the cost is that of `replay`. There images are augmented by RandAugment. A map must not be moved or mirrored: here residuals get
the recipe's noise, and a random tenth of the channels is set to what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate

ERASED = 0.1
"""Share of the channels that an augmentation sets to their expectation."""


@register_method("rar")
class Rar(Replay):
    """Replay whose batches are half the new run's and half the memory's, repeated and augmented."""

    name = "rar"

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        if strategy.experience.old:
            strategy.dataloader = repeated(strategy.experience, self.recipe.batch, self.recipe.rar_repeats)


def repeated(lesson: Lesson, batch: int, repeats: int) -> Iterator[list[Tensor]]:
    """Residuals (B, L) and labels (B,), as many times as the lesson has steps: half of the new groups, half of the old ones."""
    new, old = lesson.of(lesson.incoming), lesson.of(lesson.old)
    of_new = (batch + 1) // 2
    for step in range(lesson.steps):
        if step % repeats == 0:
            fresh_B = new.drawn(step // repeats, of_new)
        index_B = torch.cat([fresh_B, old.drawn(step, batch - of_new)]) if batch > of_new else fresh_B
        yield [augmented(lesson, lesson.residuals_ML[index_B]), lesson.label_M[index_B]]


def augmented(lesson: Lesson, residuals_BL: Tensor) -> Tensor:
    """Residuals with the recipe's noise and a random share of the channels, others in each row, at zero."""
    kept_BL = torch.rand(residuals_BL.shape, generator=lesson.generator).to(residuals_BL.device) >= ERASED
    return lesson.with_noise(residuals_BL) * kept_BL
