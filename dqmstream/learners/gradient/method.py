"""What a gradient method decides: which lumisections a training sees, what is added to its loss, what is kept afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.gradient.trainer import SupervisedPlugin
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.response.reference import Reference

PastCounts = Callable[[int], np.ndarray]
"""Counts of the live channels, (n, live), of an earlier experience's train part, read again from the archive."""


class Method(SupervisedPlugin):
    """A method without any help: the base of all, an Avalanche plugin whose callbacks take part in training."""

    name: ClassVar[str]
    starts_afresh: ClassVar[bool] = False
    """Whether each training begins with a new model."""

    def __init__(self, recipe: Recipe, seed: int, memory_bytes: int) -> None:
        """memory_bytes: of what is kept, for the whole stream; a strategy around it may set `budget_bytes` to less."""
        super().__init__()
        self.recipe = recipe
        self.seed = seed
        self.budget_bytes = memory_bytes

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        """Counts (n, live) to train on, by class, from those of the new run. The first training has two runs."""
        return {0: past(0), 1: counts} if experience == 1 else {experience: counts}

    def steps(self, classes: int) -> int:
        """Length of a training that ends with so many classes."""
        return self.recipe.steps

    def lumisections_beside(self) -> int:
        """Lumisections that go forward and backward beside the steps of a training, in order to find what to keep."""
        return 0

    def keep(self, experience: int, counts: np.ndarray, reference: Reference) -> None:
        """Called when an experience has been learnt, the first too, with the counts (n, live) of the live channels."""

    def notes(self) -> dict[str, float]:
        """What the history is to record of what is kept."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """What the method keeps, as named arrays."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        """Take back what `state` gave; model: as it was then. Raises StateError for what does not belong to it."""
        if state:
            raise StateError(f"{self.name} keeps nothing, but the state holds {', '.join(sorted(state))}")

    def memory_bytes(self) -> int:
        return 0

    def state_bytes(self) -> int:
        return 0
