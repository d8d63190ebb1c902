"""A gradient method as a `Strategy`: reference, network, training and state around one Avalanche template.

The first run sets the reference and is kept; nothing is trained before there is a second run to tell it from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from dqmstream.errors import InputError, StateError
from dqmstream.learners.gradient.device import chosen_device, seeded
from dqmstream.learners.gradient.flops import StepFlops
from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.routing_figures import RoutingFigures
from dqmstream.learners.networks.recipe import ADDED, REMOVED, Recipe
from dqmstream.learners.registry import load_strategy, register_strategy
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.learners.task import RUNS
from dqmstream.lumisection import Geometry

_SCORE_BATCH = 256
_REMOVED, _ADDED = ({f"recipe.{name}": value for name, value in entries.items()} for entries in (REMOVED, ADDED))


class DeepStrategy(Incremental):
    """Learns runs with a network and a method; see `dqmstream.learners.strategy.Strategy`."""

    def __init__(
        self,
        name: str,
        method: type[Method],
        *,
        geometry: Geometry,
        seed: int,
        recipe: Recipe,
        memory_bytes: int,
        device: str,
        beside_bytes: int = 0,
    ) -> None:
        """
        Parameters
        ----------
        name
            The strategy's name.
        method
            What it does about past runs.
        recipe
            Network and training.
        memory_bytes
            Budget for what is kept of past runs, in all.
        device
            As in `learners.gradient.device.chosen_device`.
        beside_bytes
            The part of memory_bytes that a subclass keeps beside the method.
        """
        self.name = name
        super().__init__(geometry, seed, memory_bytes=memory_bytes, recipe=recipe.to_json())
        self.recipe = recipe
        self.device = chosen_device(device)
        self._seed = seed
        self._new_method = partial(method, recipe, seed, memory_bytes - beside_bytes)
        self._flops = StepFlops()
        self._method: Method = self._new_method()
        self._begin()

    def _begin(self) -> None:
        """Go back to the state before the first run."""
        budget_bytes = self._method.budget_bytes  # a subclass may have set it
        self._method = self._new_method()
        self._method.budget_bytes = budget_bytes
        self._routing = RoutingFigures(self._seed)
        self._model: Network | None = None
        self._classes = 0
        self._effort = 1.0

    @property
    def effort(self) -> float:
        """Share of the method's training steps that the next trainings take, 0 to 1. It is part of the state."""
        return self._effort

    @effort.setter
    def effort(self, share: float) -> None:
        """Set it between two calls of `learn`. At 0 nothing is trained: the head grows, and the method keeps what it keeps.

        Raises ValueError outside 0..1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"an effort is a share of the training steps, 0 to 1, not {share}")
        self._effort = float(share)

    @property
    def classes(self) -> int:
        return self._classes

    @property
    def method(self) -> Method:
        """What the strategy does about past runs, and what that keeps."""
        return self._method

    @property
    def network(self) -> Network | None:
        """The network; None before the first run."""
        return self._model

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        live = self.reference.live
        counts = train.counts[:, live]
        self._method.reference = self.reference
        log = LearnLog(samples=len(train))
        with seeded(self._seed, experience) as generator:
            if self._model is None or self._method.starts_afresh:
                self._model = build(live, self.recipe).to(self.device)
            self._model.grow(experience + 1)
            self._classes = experience + 1
            if experience >= RUNS.first and self._effort > 0:

                def read(i: int) -> dict[int, np.ndarray]:
                    return {i: past(i).part(Part.TRAIN).counts[:, live]}

                material = self._material(experience, counts, read)
                log = self._train(self._model, material, generator, watch)
                log.notes |= self._routing.measure(self._model, experience)
            self._method.keep({experience: counts}, self.reference.residuals_of_live)
            log.notes |= self._method.notes()
        return log

    def _material(self, experience: int, counts: np.ndarray, past: PastCounts) -> Mapping[int, np.ndarray]:
        """Counts (n, live) to train on, by run, from those of the new run."""
        material = self._method.material(experience, {experience: counts}, past)
        # The first training needs a second run, also where the method keeps none.
        return past(0) | material if experience == RUNS.first and 0 not in material else material

    def _steps(self, experience: int) -> int:
        """Training steps of an experience."""
        return math.ceil(self._effort * self._method.steps(experience))

    def _train(
        self, model: Network, material: Mapping[int, np.ndarray], generator: torch.Generator, watch: Watch | None
    ) -> LearnLog:
        steps = self._steps(model.classes - 1)
        lesson = Lesson(self._inputs(model, material), self.recipe, steps, self.device, generator)
        log = taught(model, lesson, self._method, self.device, self._flops, watch)
        log.flops += self.reference.response_flops(len(lesson))
        return log

    def _inputs(self, model: Network, material: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The network's inputs, by class, from counts (n, live) by class; computed for all classes in one call."""
        inputs = model.inputs(self.reference, np.concatenate(list(material.values())))
        ends = np.cumsum([len(counts) for counts in material.values()])
        return dict(zip(material, np.split(inputs, ends[:-1]), strict=True))

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.network_scores(maps.counts[:, self.reference.live])

    @torch.inference_mode()
    def network_scores(self, counts: np.ndarray) -> np.ndarray:
        """Log-probabilities by the network, from counts (n, live): float64 (n, classes). Zero before the first training."""
        scores = np.zeros((len(counts), self._classes))
        if self._model is None:
            return scores
        inputs = torch.from_numpy(self._model.inputs(self.reference, counts))
        self._model.eval()
        for start in range(0, len(counts), _SCORE_BATCH):
            logits = self._logits(self._model, inputs[start : start + _SCORE_BATCH].to(self.device))
            scores[start : start + _SCORE_BATCH] = logits.double().log_softmax(dim=-1).cpu().numpy()
        return scores

    def _logits(self, model: Network, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of the network, or of several of which it is one. model: in evaluation mode."""
        logits: torch.Tensor = model(inputs)
        return logits

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to), "classes": np.array(self._classes)}
        if self._effort < 1:
            state["effort"] = np.array(self._effort)
        if self._model is not None:
            weights = {name: tensor.cpu().numpy().copy() for name, tensor in self._model.state_dict().items()}
            state |= self._reference_state() | prefixed("model", weights) | prefixed("method", self._method.state())
            state |= prefixed("routing", self._routing.state())
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to, removed=_REMOVED, added=_ADDED)
        if "classes" not in state:
            raise StateError("the state does not say how many runs were learnt; it is damaged or of another version")
        classes = int(state["classes"])
        self._begin()
        self.effort = float(state.get("effort", 1.0))
        self._restore_reference(state, known=classes > 0)
        if classes == 0:
            return
        model = self._restored_network(classes, within(state, "model"))
        self._method.reference = self.reference
        self._method.restore(within(state, "method"), model)
        self._routing.restore(within(state, "routing"), model)
        self._model, self._classes = model, classes

    def _restored_network(self, classes: int, weights: Mapping[str, np.ndarray]) -> Network:
        """A network of so many classes with these weights. Raises StateError if they do not fit."""
        with seeded(self._seed, classes):
            network = build(self.reference.live, replace(self.recipe, weights=""))
        network.grow(classes)
        return loaded(network, weights).to(self.device)

    def memory_bytes(self) -> int:
        return self._method.memory_bytes()

    def state_bytes(self) -> int:
        return self._method.state_bytes() + self._routing.nbytes()


def taught(
    model: Network, lesson: Lesson, method: Method, device: torch.device, flops: StepFlops, watch: Watch | None = None
) -> LearnLog:
    """Train a network on a lesson by a method; returns the losses, and what the training cost."""
    template = RunTemplate(model=model, recipe=method.recipe, device=device, plugin=method, watch=watch)
    template.teach(lesson)
    steps, batch = len(template.losses), method.recipe.batch
    log = LearnLog(torch.stack(template.losses).flatten().tolist(), steps * batch)
    log.flops = (steps + method.lumisections_beside() / batch) * flops.of_step(model, batch)
    return log


def loaded(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """The network with these weights. Raises StateError if they do not fit."""
    try:
        network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    except RuntimeError as error:
        raise StateError(f"the state's weights do not fit the model: {' '.join(str(error).split())}") from error
    return network


_M = TypeVar("_M", bound=type[Method])
_methods: dict[str, type[Method]] = {}


def method_named(name: str) -> type[Method]:
    """The method of this name. Raises InputError for a strategy that is none."""
    load_strategy(name)
    if name not in _methods:
        raise InputError(f"{name} trains no network by a method: choose one of {', '.join(_methods)}")
    return _methods[name]


def register_method(name: str, *, recipe: Recipe | None = None, network: str | None = None) -> Callable[[_M], _M]:
    """Decorator: register the strategy that learns by this `Method`, under its name; recipe, network: as `register_strategy`.

    @register_method("mine")
    class Mine(Method):
        name = "mine"
    """

    def register(method: _M) -> _M:
        def make(**arguments: Any) -> DeepStrategy:
            return DeepStrategy(name, method, **arguments)

        make.__module__, make.__qualname__ = method.__module__, method.__qualname__
        register_strategy(name, budgeted=True, recipe=recipe or Recipe(), network=network)(make)
        _methods[name] = method
        return method

    return register
