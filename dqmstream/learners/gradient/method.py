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

PastCounts = Callable[[int], dict[int, np.ndarray]]
"""Rows of an earlier experience's train part by group, read again from the archive.

A row is what is kept of a lumisection, and what the network's input is made of: of runs, the counts of the live channels.
"""

Inputs = Callable[[np.ndarray], np.ndarray]
"""Makes the network's input, float32 (n, features), from rows (n, values)."""


class Method(SupervisedPlugin):
    """Base of all methods, and an Avalanche plugin: its callbacks (`before_backward`, ...) take part in training.

    As it stands it trains on the new run alone and keeps nothing. `name` must be set; all else may be overridden.
    """

    name: ClassVar[str]
    starts_afresh: ClassVar[bool] = False
    """Whether each training begins with a new network."""
    reads_past: ClassVar[bool] = False
    """Whether it reads past experiences again: a bound, which the budget does not limit."""
    reference: Reference | None = None
    """The present reference, which the strategy sets before it calls the method; None where rows are not counts of runs."""

    def __init__(self, recipe: Recipe, seed: int, memory_bytes: int) -> None:
        """memory_bytes: budget for what is kept, for the whole stream. A strategy may lower `budget_bytes` later."""
        super().__init__()
        self.recipe = recipe
        self.seed = seed
        self.budget_bytes = memory_bytes

    def material(self, experience: int, new: Mapping[int, np.ndarray], past: PastCounts) -> dict[int, np.ndarray]:
        """Rows to train on, by group (`learners.task`). new: those of the experience that is learnt."""
        return dict(new)

    def steps(self, trainings: int) -> int:
        """Steps of a training that is the stream's so-many-th, counted from 1."""
        return self.recipe.steps

    def lumisections_beside(self) -> int:
        """Lumisections that went forward and backward beside the batches of the last training, for the count of FLOPs."""
        return 0

    def keep(self, new: Mapping[int, np.ndarray], inputs: Inputs) -> None:
        """Called after each experience, the first too, with the rows of its train part by group."""

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
