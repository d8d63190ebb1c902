"""Synaptic intelligence: weights that lowered the loss of past runs are held near their values.

    L = CE(f(x), y) + strength sum_i Ω_i (θ_i - θ*_i)²,    Ω_i <- Ω_i + max(ω_i, 0) / (Δ_i² + damping)
    ω_i = - sum over steps of g_i δ_i

f: the network's logits; θ_i: its weights, θ*_i at the end of the run before; g_i: gradient of the loss without the penalty;
δ_i: change of the weight in the step; Δ_i: change in the whole training. ω_i is a path integral: the part of the fall of the
loss that is due to weight i. Source: Zenke et al. 2017 (arXiv:1703.04200), eq. 3 to 5. A negative ω_i, which noise can leave,
would drive a weight away and counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dqmstream.learners.gradient.held_weights import HeldWeights, values_of
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate


class PathIntegral:
    """ω of each weight, followed step by step."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._begin = values_of(model)
        self._omega = {name: torch.zeros_like(value) for name, value in self._begin.items()}

    @torch.no_grad()
    def before_step(self, held: Mapping[str, Tensor] | None = None) -> None:
        """The gradients stand and the weights are about to change. held: gradient of the penalty, to be left out."""
        self._before = values_of(self._model)
        self._slope = {
            name: weight.grad - (held[name] if held else 0.0)
            for name, weight in self._model.named_parameters()
            if weight.grad is not None
        }

    @torch.no_grad()
    def after_step(self) -> None:
        weights = dict(self._model.named_parameters())
        for name, slope in self._slope.items():
            self._omega[name] -= slope * (weights[name] - self._before[name])

    @torch.no_grad()
    def importance(self, damping: float) -> dict[str, Tensor]:
        """max(ω, 0) / (Δ² + damping), by the name of the weight."""
        weights = dict(self._model.named_parameters())
        return {n: one.clamp_min(0) / ((weights[n] - self._begin[n]).square() + damping) for n, one in self._omega.items()}


@register_method("si")
class Si(HeldWeights):
    """Its importance is what each weight contributed to the fall of the loss, over the distance that it went."""

    name = "si"

    @property
    def factor(self) -> float:
        return self.recipe.si_strength

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._path = PathIntegral(strategy.model)

    def after_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        held = None
        if self.importance is not None and self._anchor is not None:
            weights = strategy.model.named_parameters()
            held = {n: 2 * self.factor * self.importance[n] * (p.detach() - self._anchor[n]) for n, p in weights}
        self._path.before_step(held)

    def after_update(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._path.after_step()

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._add(self._path.importance(self.recipe.si_damping))
        del self._path
