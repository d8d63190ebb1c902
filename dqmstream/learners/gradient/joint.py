"""Joint: a new network, trained on all runs seen so far, read again from the archive.

    L = mean over groups g of CE(f(x), label of g),    x from group g

f: the network's logits. The bound that other strategies are compared with: it keeps nothing and reads every run again, so the
memory budget does not apply. The steps of a training grow with the number of runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.strategy import register_method


@register_method("joint")
class Joint(Method):
    """Reads all runs again for every training, and starts each from new weights."""

    name = "joint"
    reads_past = True
    starts_afresh = True

    def material(self, experience: int, new: Mapping[int, np.ndarray], past: PastCounts) -> dict[int, np.ndarray]:
        return {group: rows for i in range(experience) for group, rows in past(i).items()} | dict(new)

    def steps(self, trainings: int) -> int:
        return self.recipe.steps * (trainings + 1) // 2
