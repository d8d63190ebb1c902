"""Joint: a new network, trained on all runs seen so far, read again from the archive.

    L = mean over classes c of CE(f(x), c),    x from run c

f: the network's logits. The bound that other strategies are compared with: it keeps nothing and reads every run again, so the
memory budget does not apply. The steps of a training grow with the number of runs.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.strategy import register_method


@register_method("joint")
class Joint(Method):
    """Reads all runs again for every training, and starts each from new weights."""

    name = "joint"
    starts_afresh = True

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        return {i: past(i) for i in range(experience)} | {experience: counts}

    def steps(self, classes: int) -> int:
        return self.recipe.steps * classes // 2
