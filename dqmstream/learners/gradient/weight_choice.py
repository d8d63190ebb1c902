"""What a training settles on: averaged weights, the step at which held-out lumisections were likeliest, a temperature.

    θ̄ <- decay θ̄ + (1 - decay) θ after each step (Polyak and Juditsky, SIAM J. Control Optim. 30 (1992) 838; here exponential)
    stop where the loss on held-out lumisections has not fallen for `patience` looks, and go back to the best (Prechelt 1998)
    scores = log softmax(logits) / temperature (Guo et al., ICML 2017), which run is named stays

Held out are lumisections of validation blocks: those of the new run, and where there is memory for it a few of each past run,
which nothing was fitted to. Without them the loss on the new run alone would have it named for everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.calibration import fit_temperature
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.saved_state import prefixed, within

LOOK_STEPS = 10
"""Training steps between two looks at the held-out lumisections."""

SHARE_HELD_OUT = 8
"""One byte of so many of the budget is for lumisections held out, where they are asked for."""


def held_out_bytes(recipe: Recipe, memory_bytes: int) -> int:
    """Part of a strategy's budget for past runs that is for held-out lumisections."""
    return memory_bytes // SHARE_HELD_OUT if recipe.patience or recipe.temperature else 0


class Settling:
    """Of one strategy, for all of its trainings."""

    def __init__(self, recipe: Recipe, seed: int, held_bytes: int) -> None:
        self.recipe = recipe
        self.temperature = 1.0
        self.average: Network | None = None
        self._seed, self._held_bytes = seed, held_bytes
        self._held: ExemplarMemory | None = None

    def held_out(self, experience: int, new: np.ndarray) -> dict[int, np.ndarray]:
        """Counts (n, live) by class: what is kept of past runs, and the new run's. Before it is kept itself."""
        past = {} if self._held is None else {i: self._held.of(i) for i in range(self._held.classes)}
        return {i: counts for i, counts in (past | {experience: new}).items() if len(counts)}

    def keep(self, counts: np.ndarray) -> None:
        """Keep some of an experience's validation lumisections, counts (n, live), where there is memory for them."""
        if self._held is None and self._held_bytes >= 4 * counts.shape[1]:
            self._held = ExemplarMemory(counts.shape[1], self._held_bytes, self._seed)
        if self._held is not None:
            self._held.add(counts)

    def fit_temperature(self, held: Mapping[int, np.ndarray], log_probability: Callable[[np.ndarray], np.ndarray]) -> None:
        """Fit the temperature on held-out counts by class; without any it stays as it is.

        log_probability: of counts, at a temperature of one, (n, C).
        """
        if not held:
            return
        labels = np.repeat(list(held), [len(counts) for counts in held.values()])
        self.temperature = fit_temperature(log_probability(np.concatenate(list(held.values()))), labels)

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays; empty where a recipe asks for none of it."""
        state: dict[str, np.ndarray] = {}
        if self.average is not None:
            state |= prefixed("average", {k: v.cpu().numpy().copy() for k, v in self.average.state_dict().items()})
        if self._held is not None:
            state |= prefixed("held", self._held.state())
        return state | ({"temperature": np.array(self.temperature)} if self.recipe.temperature else {})

    def restore(
        self, state: Mapping[str, np.ndarray], model: Network, network: Callable[[Mapping[str, np.ndarray]], Network]
    ) -> None:
        """Take back what `state` gave. model: as it was then; network: one of such weights. Raises StateError if damaged."""
        average, held = within(state, "average"), within(state, "held")
        if self.recipe.temperature and "temperature" not in state:
            raise StateError("the state lacks the temperature; it is damaged")
        if bool(average) != bool(self.recipe.ema and model.classes > 1):
            raise StateError("the state lacks the averaged weights; it is damaged")
        self.temperature = float(state["temperature"]) if self.recipe.temperature else 1.0
        self.average = network(average) if average else None
        self._held = None
        if self._held_bytes >= 4 * model.channels:
            self._held = ExemplarMemory(model.channels, self._held_bytes, self._seed)
            self._held.restore(held)

    def memory_bytes(self) -> int:
        return 0 if self._held is None else self._held.memory_bytes()

    def state_bytes(self) -> int:
        return 0 if self.average is None else sum(t.nbytes for t in self.average.state_dict().values())


class Settler:
    """Of one training: called after each step."""

    def __init__(self, settling: Settling, model: Network, copy: Network | None, held: Mapping[int, Tensor]) -> None:
        """copy: of the model, where weights are averaged. held: inputs (n, live) by class, where a training may stop early."""
        self._settling, self._model = settling, model
        self._ema = None if copy is None else ModelEmaV3(copy, decay=settling.recipe.ema)
        settling.average = None if self._ema is None else self._ema.module
        self._held = held
        self._best: tuple[dict[str, Tensor], ...] | None = None
        self._without, self._loss = 0, np.inf

    def __call__(self, step: int) -> bool:
        """Whether the training is to stop after this many steps."""
        if self._ema is not None:
            self._ema.update(self._model)
        if not self._held or step % LOOK_STEPS:
            return False
        loss = self._held_out_loss()
        if loss < self._loss:
            self._loss, self._without = loss, 0
            self._best = tuple({k: v.clone() for k, v in one.state_dict().items()} for one in self._networks)
            return False
        self._without += 1
        return self._without >= self._settling.recipe.patience

    def end(self) -> None:
        """Go back to the weights of the best look, if the last was none."""
        if self._best is not None and (self._without or self._held_out_loss() > self._loss):
            for one, weights in zip(self._networks, self._best, strict=True):
                one.load_state_dict(weights)

    @property
    def _networks(self) -> list[Network]:
        return [self._model, *([] if self._settling.average is None else [self._settling.average])]

    def _held_out_loss(self) -> float:
        """Mean over classes of the cross-entropy, of the network that scores; nothing a training depends on has changed."""
        network = self._networks[-1]
        network.eval()
        with torch.random.fork_rng(), torch.no_grad():
            losses = [-network(rows).double().log_softmax(dim=-1)[:, i].mean() for i, rows in self._held.items()]
        self._model.train()
        return float(torch.stack(losses).mean())
