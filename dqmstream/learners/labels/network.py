"""A gradient method on the task of labels: Avalanche's domain-incremental scenario, a head of two from the first period on.

The methods are those of the run task (`learners.gradient`). A training has batches of equal shares of good and faulty; at
scoring, the log-odds of how often train lumisections were faulty so far are added to the network's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dqmstream.errors import StateError
from dqmstream.learners.gradient.device import chosen_device, seeded
from dqmstream.learners.gradient.flops import StepFlops
from dqmstream.learners.gradient.strategy import loaded, method_named, taught
from dqmstream.learners.gradient.trainer import Lesson
from dqmstream.learners.labels.rows import CONDITIONS, Rows, decoded
from dqmstream.learners.labels.strategy import Period
from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.routers import Router
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog
from dqmstream.learners.task import LABELS

_SCORE_BATCH = 1024


class OnRows(Network):
    """Any network, on inputs of residuals and conditions together: (B, L + 2)."""

    def __init__(self, inner: Network, live: np.ndarray) -> None:
        super().__init__(live)
        self.inner = inner

    def forward(self, residuals_BL: Tensor) -> Tensor:
        return self.inner.forward_with(residuals_BL[:, :-CONDITIONS], residuals_BL[:, -CONDITIONS:])

    def heads(self) -> list[GrowingLinear]:
        return self.inner.heads()

    def routers(self) -> list[Router]:
        return self.inner.routers()

    @property
    def row_values(self) -> int:
        return self.channels + CONDITIONS


class LabelledNetwork:
    """A `LabelStrategy` that trains a network by a method."""

    def __init__(self, name: str, live: np.ndarray, *, seed: int, recipe: Recipe, memory_bytes: int, device: str) -> None:
        """memory_bytes: budget for what is kept of past lumisections. live: bool, (depth, 64, 72), the channels of a row."""
        self.name = name
        self._live, self._seed, self.recipe = live, seed, recipe
        self._device = chosen_device(device)
        self._new_method = lambda: method_named(name)(recipe, seed, memory_bytes)
        self._belongs_to = {
            "strategy": name, "task": LABELS.name, "channels": int(live.sum()), "seed": seed, "memory_bytes": memory_bytes,
            "recipe": recipe.to_json(),
        }  # fmt: skip
        self._flops = StepFlops()
        self._begin()

    def _begin(self) -> None:
        self._method = self._new_method()
        self._model: Network | None = None
        self._periods = 0
        self._seen = np.zeros(2, dtype=np.int64)
        self._past: list[dict[int, np.ndarray]] = []

    @property
    def periods(self) -> int:
        return self._periods

    @property
    def network(self) -> Network | None:
        """The network; None before the first period."""
        return self._model

    @property
    def _is_bound(self) -> bool:
        """Whether the method reads past periods again: their train rows are then kept, outside the budget."""
        return self._method.reads_past

    def learn(self, period: Period) -> LearnLog:
        number = period.number
        if number != self._periods:
            raise ValueError(f"period {number} cannot follow {self._periods} learnt ones")
        train = period.rows.of(Part.TRAIN)
        new = {group: train.values[train.label == LABELS.label(group)] for group in LABELS.groups(number)}
        with seeded(self._seed, number) as generator:
            if self._model is None or self._method.starts_afresh:
                self._model = self._new_network()
            material = self._method.material(number, new, self._past.__getitem__)
            inputs = {group: decoded(values) for group, values in material.items()}
            steps = self._method.steps(number + 1)
            lesson = Lesson(inputs, self.recipe, steps, self._device, generator, task=LABELS, experience=number)
            log = taught(self._model, lesson, self._method, self._device, self._flops)
            self._method.keep(new, decoded)
        log.notes |= self._method.notes()
        if self._is_bound:
            self._past.append(new)
        self._seen = self._seen + period.rows.counts(Part.TRAIN)
        self._periods += 1
        return log

    def _new_network(self) -> Network:
        network = OnRows(build(self._live, self.recipe), self._live)
        network.grow(LABELS.outputs(1))
        return network.to(self._device)

    @torch.inference_mode()
    def scores(self, rows: Rows) -> np.ndarray:
        scores = np.full((len(rows), LABELS.outputs(1)), np.log(0.5))
        if self._model is None:
            return scores
        self._model.eval()
        for start in range(0, len(rows), _SCORE_BATCH):
            part = slice(start, start + _SCORE_BATCH)
            inputs = torch.from_numpy(decoded(rows.values[part])).to(self._device)
            scores[part] = self._model(inputs).double().cpu().numpy()
        scores += np.log(self._seen)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to), "periods": np.array(self._periods), "seen": self._seen.copy()}
        if self._model is not None:
            weights = {name: tensor.cpu().numpy().copy() for name, tensor in self._model.state_dict().items()}
            state |= prefixed("model", weights) | prefixed("method", self._method.state())
            for number, groups in enumerate(self._past):
                state |= {f"past.{number}.{group}": values for group, values in groups.items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        if not {"periods", "seen"} <= state.keys():
            raise StateError("the state does not say how many periods were learnt; it is damaged")
        self._begin()
        periods = int(state["periods"])
        if not periods:
            return
        with seeded(self._seed, periods):
            model = loaded(self._new_network(), within(state, "model"))
        self._method.restore(within(state, "method"), model)
        if self._is_bound:
            past = within(state, "past")
            try:
                self._past = [{g: np.array(past[f"{i}.{g}"]) for g in LABELS.groups(i)} for i in range(periods)]
            except KeyError as error:
                raise StateError(f"the state of {self.name} lacks lumisections of period and group {error}") from error
        self._model, self._periods, self._seen = model, periods, np.array(state["seen"])

    def memory_bytes(self) -> int:
        return self._method.memory_bytes()

    def state_bytes(self) -> int:
        return self._method.state_bytes() + sum(values.nbytes for groups in self._past for values in groups.values())
