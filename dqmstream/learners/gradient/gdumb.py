"""GDumb: a new network, trained on a balanced memory alone.

    L = mean over groups g of CE(f(x), label of g),    x from the memory

f: the network's logits. The memory holds as many lumisections of each run as of any other; the new run is in it before the
training, and nothing else is trained on. Source: Prabhu et al. 2020 (ECCV, "GDumb: A Simple Approach that Questions Our
Progress in Continual Learning"). There the training runs once, when an answer is asked for; here after each run, since accuracy
is measured after each. The steps grow with the runs, as those of `joint` do. CutMix, which the paper uses, is left out: a piece
of one run in a map of another has no one label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dqmstream.learners.gradient.method import Inputs, PastCounts
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.networks.recipe import Recipe

POLICY = "balanced"
"""Of `learners.memory.selection`, whatever the recipe says: the paper's greedy sampler, for runs that arrive whole."""


@register_method("gdumb")
class Gdumb(Replay):
    """Replay's memory, on which alone a network is trained from new weights."""

    name = "gdumb"
    starts_afresh = True

    def __init__(self, recipe: Recipe, seed: int, memory_bytes: int) -> None:
        super().__init__(replace(recipe, memory=POLICY), seed, memory_bytes)

    def material(self, experience: int, new: Mapping[int, np.ndarray], past: PastCounts) -> dict[int, np.ndarray]:
        self._take(new)
        return {group: rows.copy() for group, rows in enumerate(self.exemplars()) if len(rows)}

    def keep(self, new: Mapping[int, np.ndarray], inputs: Inputs) -> None:
        self._take(new)

    def _take(self, new: Mapping[int, np.ndarray]) -> None:
        """Add the groups that are not in the memory yet: before the training, or after an experience without one."""
        known = len(self.exemplars())
        super().keep({group: rows for group, rows in new.items() if group >= known}, _no_inputs)

    def steps(self, trainings: int) -> int:
        return self.recipe.steps * (trainings + 1) // 2


def _no_inputs(rows: np.ndarray) -> np.ndarray:
    raise AssertionError("the balanced policy looks at no inputs")
