"""A gradient method as a `Strategy`: reference, network, training and state around one Avalanche template.

The first run gives the reference and is kept; nothing is trained until there is a second to tell it from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from dqmstream.errors import StateError
from dqmstream.learners.gradient.augmentation import with_copies
from dqmstream.learners.gradient.device import seeded
from dqmstream.learners.gradient.flops import StepFlops
from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate
from dqmstream.learners.gradient.weight_choice import Settler, Settling, held_out_bytes
from dqmstream.learners.incremental import Incremental
from dqmstream.learners.maps import Maps
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.moe.growth import split_busiest
from dqmstream.learners.networks.moe.routing_figures import Routing
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import build
from dqmstream.learners.saved_state import STAMP, check_stamp, prefixed, stamp, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

_SCORE_BATCH = 256
_COPIES = 2
"""Sets the redrawings of a training apart from other uses of the strategy's seed."""


class DeepStrategy(Incremental):
    """Learns runs by a method; see `dqmstream.learners.strategy.Strategy`."""

    def __init__(
        self,
        name: str,
        method: type[Method],
        *,
        geometry: Geometry,
        seed: int,
        recipe: Recipe,
        memory_bytes: int,
        device: torch.device,
        beside_bytes: int = 0,
    ) -> None:
        """name: the strategy's own. method: what it does about past runs; recipe: its network and training.

        beside_bytes: of memory_bytes, what a strategy around this one keeps.
        """
        self.name = name
        super().__init__(geometry, seed, memory_bytes=memory_bytes, recipe=recipe.to_json())
        self.recipe = recipe
        self.device = device
        self._seed = seed
        own_bytes = memory_bytes - beside_bytes
        held_bytes = held_out_bytes(recipe, own_bytes)
        self._new_method = partial(method, recipe, seed, own_bytes - held_bytes)
        self._new_settling = partial(Settling, recipe, seed, held_bytes)
        self._flops = StepFlops()
        self._method: Method = self._new_method()
        self._begin()

    def _begin(self) -> None:
        """Be as before the first run."""
        budget_bytes = self._method.budget_bytes  # a strategy around this one may have set it
        self._method = self._new_method()
        self._method.budget_bytes = budget_bytes
        self._settling = self._new_settling()
        self._routing = Routing(self._seed)
        self._model: Network | None = None
        self._classes = 0

    @property
    def classes(self) -> int:
        return self._classes

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        live = self.reference.live
        counts = train.counts[:, live]
        log = LearnLog(samples=len(train))
        with seeded(self._seed, experience) as generator:
            split: dict[str, float] = {}
            if self._model is None or self._method.starts_afresh:
                self._model = self._new_network(experience + 1, self.recipe).to(self.device)
            elif self.recipe.experts_at(experience + 1) > self.recipe.experts_at(experience):
                split = split_busiest(self._model, self._seed, generator)
            self._model.grow(experience + 1)
            self._classes = experience + 1
            for router in self._model.routers():
                router.frozen = 0 < self.recipe.freeze_router < experience
            if experience > 0:
                material = self._material(experience, counts, lambda i: past(i).part(Part.TRAIN).counts[:, live])
                held = self._settling.held_out(experience, validation.counts[:, live])
                log = self._train(self._model, material, held, generator, watch)
                log.notes |= self._routing.look(self._model, experience) | split
            self._settling.keep(validation.counts[:, live])
            self._method.keep(experience, counts, self.reference)
            log.notes |= self._method.notes()
        return log

    def _material(self, experience: int, counts: np.ndarray, past: PastCounts) -> Mapping[int, np.ndarray]:
        """Counts (n, live) to train on, by class, from those of the new run."""
        return self._method.material(experience, counts, past)

    def _train(
        self,
        model: Network,
        material: Mapping[int, np.ndarray],
        held: Mapping[int, np.ndarray],
        generator: torch.Generator,
        watch: Watch | None,
    ) -> LearnLog:
        asked = 0
        if self.recipe.augment:
            asked = sum(map(len, material.values()))
            material = self._with_copies(material, np.random.default_rng([self._seed, model.classes, _COPIES]))
        residuals = self._inputs(model, material)
        steps = self._method.steps(model.classes)
        lesson = Lesson(residuals, self.recipe, steps, self.device, generator)
        settler = self._settler(model, held)
        template = RunTemplate(
            model=model, recipe=self.recipe, device=self.device, plugin=self._method, watch=watch, settle=settler
        )
        template.teach(lesson)
        settler.end()
        log = LearnLog(torch.stack(template.losses).flatten().tolist(), len(template.losses) * self.recipe.batch)
        if self.recipe.temperature:
            self._settling.fit_temperature(held, self._log_probability)
            log.notes["temperature"] = self._settling.temperature
        trained = len(template.losses) + self._method.lumisections_beside() / self.recipe.batch
        step = self._flops.of_step(model, self.recipe.batch)
        log.flops = self.reference.response_flops(asked + len(lesson)) + trained * step
        return log

    def _inputs(self, model: Network, material: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """What goes into the network, of counts (n, live) by class: of all at once, as many classes are mostly calls."""
        if not material:
            return {}
        inputs = model.inputs(self.reference, np.concatenate(list(material.values())))
        ends = np.cumsum([len(counts) for counts in material.values()])
        return dict(zip(material, np.split(inputs, ends[:-1]), strict=True))

    def _with_copies(self, material: Mapping[int, np.ndarray], rng: np.random.Generator) -> Mapping[int, np.ndarray]:
        """The counts (n, live) of each class, and below them what the recipe's augmentations make of them."""
        names, copies = self.recipe.augment, self.recipe.augment_copies
        return {
            i: with_copies(counts, self.reference.response(counts).events, names, copies, rng) for i, counts in material.items()
        }

    def _settler(self, model: Network, held: Mapping[int, np.ndarray]) -> Settler:
        copy = self._network(model.classes, model.state_dict()) if self.recipe.ema else None
        looked_at = held if self.recipe.patience else {}
        inputs = {i: torch.from_numpy(rows).to(self.device) for i, rows in self._inputs(model, looked_at).items()}
        return Settler(self._settling, model, copy, inputs)

    def _network(self, classes: int, weights: Mapping[str, torch.Tensor]) -> Network:
        """A network of so many classes and these weights. Raises StateError if they do not fit."""
        with seeded(self._seed, classes):
            network = self._new_network(classes, replace(self.recipe, weights=""))
        network.grow(classes)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise StateError(f"the state's weights do not fit the model: {' '.join(str(error).split())}") from error
        for router in network.routers():
            router.check_families(self.recipe.experts)
        return network.to(self.device)

    def _new_network(self, classes: int, recipe: Recipe) -> Network:
        """Without a head, and with as many experts as there are when so many runs are learnt."""
        return build(self.reference.live, replace(recipe, experts=recipe.experts_at(classes)))

    def _scores(self, maps: Maps) -> np.ndarray:
        return self.network_scores(maps.counts[:, self.reference.live])

    def network_scores(self, counts: np.ndarray) -> np.ndarray:
        """The network's own scores, zero before there is one: float64 (n, classes), from (n, live)."""
        return self._log_probability(counts) / self._settling.temperature

    @torch.inference_mode()
    def _log_probability(self, counts: np.ndarray) -> np.ndarray:
        """Logarithms of its probabilities at a temperature of one, with averaged weights where there are any."""
        scores = np.zeros((len(counts), self._classes))
        if self._model is None:
            return scores
        network = self._settling.average or self._model
        residuals = torch.from_numpy(network.inputs(self.reference, counts))
        network.eval()
        for start in range(0, len(counts), _SCORE_BATCH):
            logits = network(residuals[start : start + _SCORE_BATCH].to(self.device))
            scores[start : start + _SCORE_BATCH] = logits.double().log_softmax(dim=-1).cpu().numpy()
        return scores

    def state(self) -> dict[str, np.ndarray]:
        state = {STAMP: stamp(self._belongs_to), "classes": np.array(self._classes)}
        if self._model is not None:
            weights = {name: tensor.cpu().numpy().copy() for name, tensor in self._model.state_dict().items()}
            state |= self._reference_state() | prefixed("model", weights) | prefixed("method", self._method.state())
            state |= prefixed("routing", self._routing.state()) | prefixed("settling", self._settling.state())
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, self._belongs_to)
        if "classes" not in state:
            raise StateError("the state does not say how many runs were learnt; it is damaged or of another version")
        classes = int(state["classes"])
        self._begin()
        self._restore_reference(state, known=classes > 0)
        if classes == 0:
            return
        model = self._restored(classes, within(state, "model"))
        self._settling.restore(within(state, "settling"), model, lambda weights: self._restored(classes, weights))
        self._method.restore(within(state, "method"), model)
        self._routing.restore(within(state, "routing"), model)
        self._model, self._classes = model, classes

    def _restored(self, classes: int, weights: Mapping[str, np.ndarray]) -> Network:
        return self._network(classes, {name: torch.tensor(array) for name, array in weights.items()})

    def memory_bytes(self) -> int:
        return self._method.memory_bytes() + self._settling.memory_bytes()

    def state_bytes(self) -> int:
        return self._method.state_bytes() + self._routing.nbytes() + self._settling.state_bytes()
