"""Base of the methods that hold the weights that mattered near their values: EWC, SI, MAS.

    L = CE(f(x), y) + factor sum_i I_i (θ_i - θ*_i)²

f: the network's logits; θ_i: its weights, θ*_i at the end of the experience before; I_i: importance, which each method measures
in its own way. New rows of the head have none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.errors import StateError
from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.trainer import RunTemplate
from dqmstream.learners.networks.base import Network


class HeldWeights(Method):
    """Keeps one importance a weight, whatever the number of experiences."""

    importance: dict[str, Tensor] | None = None
    """By the name of the weight; None before the first training."""
    _anchor: dict[str, Tensor] | None = None

    @property
    @abstractmethod
    def factor(self) -> float:
        """Factor of the penalty in the loss."""

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self.importance is not None:
            self.importance = {n: padded(self.importance[n], p) for n, p in strategy.model.named_parameters()}
            self._anchor = values_of(strategy.model)

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self.importance is not None and self._anchor is not None:
            held = penalty(strategy.model, self.importance, self._anchor)
            strategy.loss = strategy.loss + self.factor * held

    def _add(self, new: dict[str, Tensor], decay: float = 1.0) -> None:
        """Add the importance that the last training gave; what was there is multiplied by the decay."""
        old = self.importance
        self.importance = new if old is None else {n: decay * old[n] + one for n, one in new.items()}
        self._anchor = None

    def state(self) -> dict[str, np.ndarray]:
        return {} if self.importance is None else {name: one.cpu().numpy().copy() for name, one in self.importance.items()}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        self.importance = None
        if model.classes > 1:
            weights = dict(model.named_parameters())
            if weights.keys() != state.keys():
                raise StateError(f"the state lacks the importance of {', '.join(sorted(weights.keys() ^ state.keys()))}")
            self.importance = {n: padded(torch.tensor(state[n], device=w.device), w) for n, w in weights.items()}

    def state_bytes(self) -> int:
        return 0 if self.importance is None else sum(one.nbytes for one in self.importance.values())


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def penalty(model: nn.Module, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum_i I_i (θ_i - θ*_i)² over all weights."""
    return torch.stack([(importance[n] * (p - anchor[n]).square()).sum() for n, p in model.named_parameters()]).sum()


def padded(importance: Tensor, weight: Tensor) -> Tensor:
    """Importance with zero rows for those that the weight has gained. Raises StateError for another shape."""
    if importance.shape[1:] != weight.shape[1:] or len(importance) > len(weight):
        raise StateError(f"an importance of shape {tuple(importance.shape)} is not of a weight {tuple(weight.shape)}")
    return torch.cat([importance, importance.new_zeros(len(weight) - len(importance), *importance.shape[1:])])


def drawn_samples(strategy: RunTemplate, most: int) -> Tensor:
    """At most so many rows of the lesson, at random: (n, features)."""
    lesson = strategy.experience
    chosen = torch.randperm(len(lesson), generator=lesson.generator)[:most]
    return lesson.residuals_ML[chosen.to(lesson.residuals_ML.device)]
