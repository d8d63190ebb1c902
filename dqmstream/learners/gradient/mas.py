"""Memory aware synapses: weights to which the network's output is sensitive are held near their values.

    L = CE(f(x), y) + strength sum_i Ω_i (θ_i - θ*_i)²,    Ω_i <- Ω_i + mean over samples of |d |f(x)|² / dθ_i|

f: the network's logits, |f|² their squared norm; θ_i: its weights, θ*_i at the end of the run before. No label enters Ω.
Source: Aljundi et al. 2018 (arXiv:1711.09601), with the squared norm of the output. Magnitudes are taken sample by sample, as
there; those of a batch's mean gradient, which are common, lose what differs in sign.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqmstream.learners.gradient.held_weights import HeldWeights, drawn_samples
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate


@register_method("mas")
class Mas(HeldWeights):
    """Its importance is the sensitivity of the output; `fisher_samples` of the recipe are looked at for it."""

    name = "mas"

    @property
    def factor(self) -> float:
        return self.recipe.mas_strength

    def lumisections_beside(self) -> int:
        return self.recipe.fisher_samples

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._add(sensitivity(strategy.model, drawn_samples(strategy, self.recipe.fisher_samples)))


def sensitivity(model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
    """Mean over samples (n, features) of |d |f(x)|² / dθ|, by the name of the weight."""
    was_training = model.training
    model.eval()
    weights = dict(model.named_parameters())
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample in samples:
        squared = model(sample[None]).square().sum()
        gradients = torch.autograd.grad(squared, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.abs() / len(samples)
    model.train(was_training)
    return found
