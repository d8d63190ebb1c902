"""Ensemble of checkpoints: the newest network beside a few older ones, whose probabilities are averaged.

    p(k | x) = mean over members m of p_m(k | x)
    p_m(k | x) = q_m(k | x) P_m(x) for the classes k that m knows, q(k | x) for others

q: softmax of the newest network; q_m: of an older member, over the classes it knows; P_m: the sum of q over those classes. An
older member thus divides among its own classes what the newest gives them all together. Source: Julson et al.,
arXiv:2603.02369, who put models of the newest data beside older ones against drift. Only the abstract was read. Ours are replay
as the training (without it every member names the last run it saw), and which members stay (`learners.memory.checkpoints`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from dqmstream.errors import StateError
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.checkpoints import spread
from dqmstream.learners.networks.base import Network
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch

MEMBERS = 4
"""Networks of the ensemble: the newest and three older ones."""

_KNOWN = "older_classes"


class CheckpointEnsemble(DeepStrategy):
    """Replay that keeps the weights of networks that knew fewer runs, and asks them too."""

    def _begin(self) -> None:
        super()._begin()
        self._older: list[dict[str, Tensor]] = []
        self._known: list[int] = []

    @property
    def known(self) -> list[int]:
        """How many runs each older member knows, ascending."""
        return self._known

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        if self._model is not None and experience > 1:
            self._older.append({name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()})
            self._known.append(experience)
            stay = spread(self._known, experience + 1, MEMBERS - 1)
            self._older, self._known = [self._older[i] for i in stay], [self._known[i] for i in stay]
        return super()._learn(experience, train, validation, past, watch)

    def _logits(self, model: Network, inputs: Tensor) -> Tensor:
        newest = model(inputs).double().softmax(dim=-1)
        total = newest.clone()
        for weights, known in zip(self._older, self._known, strict=True):
            own = functional_call(model, weights, (inputs,)).double().softmax(dim=-1)
            total[:, :known] += own * newest[:, :known].sum(dim=-1, keepdim=True)
            total[:, known:] += newest[:, known:]
        return (total / (1 + len(self._older))).clamp_min(torch.finfo(torch.float64).tiny).log()

    def state(self) -> dict[str, np.ndarray]:
        state = super().state()
        if self._older:
            state[_KNOWN] = np.array(self._known, dtype=np.int64)
        for place, weights in enumerate(self._older):
            state |= prefixed(f"older{place}", {name: tensor.cpu().numpy().copy() for name, tensor in weights.items()})
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        known = np.array(state.get(_KNOWN, np.zeros(0, np.int64)), dtype=np.int64).tolist()
        for place, classes in enumerate(known):
            weights = within(state, f"older{place}")
            if not weights:
                raise StateError(f"the state of {self.name} lacks the weights of its older member {place}; it is damaged")
            self._older.append(dict(self._restored_network(classes, weights).state_dict()))
        self._known = known

    def state_bytes(self) -> int:
        return super().state_bytes() + sum(tensor.nbytes for weights in self._older for tensor in weights.values())


@register_strategy("ensemble")
def ensemble(**arguments: Any) -> CheckpointEnsemble:
    """The newest network by replay, beside three older ones."""
    return CheckpointEnsemble("ensemble", Replay, **arguments)
