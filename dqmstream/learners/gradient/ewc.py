"""Elastic weight consolidation, online: weights that mattered for past runs are held near their values.

    L = CE(f(x), y) + strength / 2 sum_i F_i (θ_i - θ*_i)²,    F <- decay F + mean over samples of (d log p(ŷ|x) / dθ_i)²

f: the network's logits; θ_i: its weights, θ*_i at the end of the run before; F_i: Fisher information; ŷ: drawn from the
network's prediction p(.|x). Sources: Kirkpatrick et al. 2017 (arXiv:1612.00796); online form Schwarz et al. 2018
(arXiv:1805.06370). Gradients are squared sample by sample: the square of a batch's mean gradient, which is common, falls as
1/batch. New rows of the head have no Fisher information.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.errors import StateError
from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate
from dqmstream.learners.networks.base import Network


@register_method("ewc")
class Ewc(Method):
    """Keeps one Fisher information a weight, whatever the number of runs."""

    name = "ewc"
    _fisher: dict[str, Tensor] | None = None
    _anchor: dict[str, Tensor] | None = None

    def lumisections_beside(self) -> int:
        return self.recipe.fisher_samples

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self._fisher is not None:
            self._fisher = {n: padded(self._fisher[n], p) for n, p in strategy.model.named_parameters()}
            self._anchor = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self._fisher is not None and self._anchor is not None:
            held = penalty(strategy.model, self._fisher, self._anchor)
            strategy.loss = strategy.loss + self.recipe.ewc_strength / 2 * held

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        lesson = strategy.experience
        chosen = torch.randperm(len(lesson), generator=lesson.generator)[: self.recipe.fisher_samples]
        samples = lesson.residuals_ML[chosen.to(lesson.residuals_ML.device)]
        new = fisher_information(strategy.model, samples, lesson.generator)
        old = self._fisher
        self._fisher = new if old is None else {n: self.recipe.ewc_decay * old[n] + f for n, f in new.items()}
        self._anchor = None

    def state(self) -> dict[str, np.ndarray]:
        return {} if self._fisher is None else {name: f.cpu().numpy().copy() for name, f in self._fisher.items()}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        self._fisher = None
        if model.classes > 1:
            weights = dict(model.named_parameters())
            if weights.keys() != state.keys():
                raise StateError(f"the state lacks Fisher information of {', '.join(sorted(weights.keys() ^ state.keys()))}")
            self._fisher = {n: padded(torch.tensor(state[n], device=w.device), w) for n, w in weights.items()}

    def state_bytes(self) -> int:
        return 0 if self._fisher is None else sum(f.nbytes for f in self._fisher.values())


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


def penalty(model: nn.Module, fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum_i F_i (θ_i - θ*_i)² over all weights."""
    return torch.stack([(fisher[n] * (p - anchor[n]).square()).sum() for n, p in model.named_parameters()]).sum()


def padded(fisher: Tensor, weight: Tensor) -> Tensor:
    """Fisher information with zero rows for those that the weight has gained. Raises StateError for another shape."""
    if fisher.shape[1:] != weight.shape[1:] or len(fisher) > len(weight):
        raise StateError(f"a Fisher information of shape {tuple(fisher.shape)} is not of a weight {tuple(weight.shape)}")
    return torch.cat([fisher, fisher.new_zeros(len(weight) - len(fisher), *fisher.shape[1:])])
