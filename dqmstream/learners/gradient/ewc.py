"""Elastic weight consolidation: weights that mattered for past runs are held near their values.

    L = CE(f(x), y) + strength / 2 sum_i F_i (θ_i - θ*_i)²,    F <- decay F + mean over samples of (d log p(ŷ|x) / dθ_i)²

f: the network's logits; θ_i: its weights, θ*_i at the end of the run before; F_i: Fisher information; ŷ: drawn from the
network's prediction p(.|x). Sources: Kirkpatrick et al. 2017 (arXiv:1612.00796); online form Schwarz et al. 2018
(arXiv:1805.06370). Gradients are squared sample by sample: the square of a batch's mean gradient, which is common, falls as
1/batch. New rows of the head have no Fisher information.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqmstream.learners.gradient.held_weights import HeldWeights, drawn_samples
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate


@register_method("ewc")
class Ewc(HeldWeights):
    """Its importance is the Fisher information."""

    name = "ewc"

    @property
    def factor(self) -> float:
        return self.recipe.ewc_strength / 2

    def lumisections_beside(self) -> int:
        return self.recipe.fisher_samples

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        samples = drawn_samples(strategy, self.recipe.fisher_samples)
        self._add(fisher_information(strategy.model, samples, strategy.experience.generator), self.recipe.ewc_decay)


def fisher_information(model: nn.Module, samples: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Diagonal Fisher information, by the name of the weight: mean over samples of (d log p(ŷ|x) / dθ)².

    samples: (n, features). ŷ is drawn from p(.|x) by the generator, on the CPU.
    """
    was_training = model.training
    model.eval()
    weights = dict(model.named_parameters())
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample in samples:
        log_p = model(sample[None]).log_softmax(dim=-1)[0]
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).item()
        gradients = torch.autograd.grad(log_p[drawn], list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                fisher[name] += gradient.square() / len(samples)
    model.train(was_training)
    return fisher
