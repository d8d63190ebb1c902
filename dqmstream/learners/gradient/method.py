"""A gradient method: which lumisections a training sees, what is added to its loss, and what is kept afterwards."""

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
    """Base of all methods, and an Avalanche plugin: its callbacks (`before_backward`, ...) take part in training.

    As it stands it trains on the new run alone and keeps nothing. `name` must be set; all else may be overridden.
    """

    name: ClassVar[str]
    starts_afresh: ClassVar[bool] = False
    """Whether each training begins with a new network."""

    def __init__(self, recipe: Recipe, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget for what is kept, for the whole stream. A strategy may lower `budget_bytes` later."""
        super().__init__()
        self.recipe = recipe
        self.seed = seed
        self.budget_bytes = memory_bytes

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        """Counts (n, live) to train on, by class. counts: of the new run. The first training has two runs."""
        return {0: past(0), 1: counts} if experience == 1 else {experience: counts}

    def steps(self, classes: int) -> int:
        """Steps of a training at whose end the network has so many classes."""
        return self.recipe.steps

    def lumisections_beside(self) -> int:
        """Lumisections that went forward and backward beside the batches of the last training, for the count of FLOPs."""
        return 0

    def keep(self, experience: int, counts: np.ndarray, reference: Reference) -> None:
        """Called after each experience, the first too, with the counts (n, live) of its train part."""

    def notes(self) -> dict[str, float]:
        """Figures for the history about what is kept."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """What the method keeps, as named arrays."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        """Take back what `state` gave. model: the network of that state. Raises StateError for a damaged state."""
        if state:
            raise StateError(f"{self.name} keeps nothing, but the state holds {', '.join(sorted(state))}")

    def memory_bytes(self) -> int:
        """Bytes kept of past data."""
        return 0

    def state_bytes(self) -> int:
        """Bytes of all else that is kept (Fisher information, a teacher)."""
        return 0
