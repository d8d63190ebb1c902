"""Joint: a new model, trained on every run seen so far, read again from the archive. The bound that others are held against.

    L = mean over classes c of CE(f(x), c),    x from any run

It keeps nothing and asks for everything, so the memory budget does not apply. Its steps grow with the number of runs.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts


class Joint(Method):
    """Reads all runs again for every training."""

    name = "joint"
    starts_afresh = True

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        return {i: past(i) for i in range(experience)} | {experience: counts}

    def steps(self, classes: int) -> int:
        return self.recipe.steps * classes // 2
