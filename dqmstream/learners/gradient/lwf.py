"""Learning without forgetting: the network before the run teaches the network that learns it, on the new run's lumisections.

    L = CE(f(x), y) + strength T² KL(softmax(f°(x)[old] / T) || softmax(f(x)[old] / T)),    x from the new experience

f: the network's logits; f°: those of the network before, for the same noisy x; [old]: the outputs known then; T:
temperature. Sources: Li and Hoiem 2017 (arXiv:1606.09282); distillation by Hinton et al. 2015 (arXiv:1503.02531). It keeps no
data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.gradient.trainer import RunTemplate
from dqmstream.learners.networks.base import Network


@register_method("lwf")
class Lwf(Method):
    """Holds the old weights during a training, from the second one on; keeps nothing between trainings."""

    name = "lwf"
    teacher: dict[str, Tensor] | None = None
    """Weights and buffers before the run, by name."""
    _teacher_bytes = _usual_bytes = 0
    _beside = 0
    _known = 0

    def before_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self._beside = 0
        self._known = strategy.experience.known
        self._usual_bytes = _usual_teacher(strategy.model)
        if self._known:
            self.teacher = {name: tensor.detach().clone() for name, tensor in strategy.model.state_dict().items()}
            self._teacher_bytes = sum(weight.nbytes for weight in self.teacher.values())

    @torch.no_grad()
    def before_forward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self.teacher is not None:
            strategy.model.eval()
            self._taught_BC: Tensor = functional_call(strategy.model, self.teacher, (strategy.mb_x,))
            strategy.model.train()
            self._beside += len(strategy.mb_x)

    def before_backward(self, strategy: RunTemplate, **kwargs: object) -> None:
        if self.teacher is not None:
            known = self._known
            kept = distillation(strategy.mb_output[:, :known], self._taught_BC[:, :known], self.recipe.lwf_temperature)
            strategy.loss = strategy.loss + self.recipe.lwf_strength * kept

    def after_training_exp(self, strategy: RunTemplate, **kwargs: object) -> None:
        self.teacher = None

    def lumisections_beside(self) -> int:
        """A third of the teacher's forward passes: a step is a forward and a backward pass, which costs twice as much."""
        return self._beside // 3

    def state(self) -> dict[str, np.ndarray]:
        """The teacher's size, where the number of outputs does not say it (outputs that are fixed)."""
        return {} if self._teacher_bytes == self._usual_bytes else {"teacher_bytes": np.array(self._teacher_bytes)}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        self._usual_bytes = _usual_teacher(model)
        self._teacher_bytes = int(state.get("teacher_bytes", self._usual_bytes))
        super().restore({name: array for name, array in state.items() if name != "teacher_bytes"}, model)

    def state_bytes(self) -> int:
        """Bytes of the teacher of the last training."""
        return self._teacher_bytes


def _usual_teacher(model: Network) -> int:
    """Bytes of the last training's teacher where every experience adds an output: there is one from the third on."""
    return sum(tensor.nbytes for tensor in model.state_dict().values()) if model.classes > 2 else 0


def distillation(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) at temperature T, the mean over rows, from logits (B, C)."""
    target_BC = (teacher_BC / temperature).log_softmax(dim=1)
    given_BC = (student_BC / temperature).log_softmax(dim=1)
    kl = torch.nn.functional.kl_div(given_BC, target_BC, reduction="batchmean", log_target=True)
    return temperature**2 * kl
