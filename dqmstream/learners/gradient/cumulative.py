"""Cumulative: the same model goes on training, on every run seen so far, read again from the archive. A bound, as joint is.

    L = mean over classes c of CE(f(x), c),    x from any run

It keeps nothing and asks for everything, so the memory budget does not apply. Unlike joint it starts from what it knew, and
takes as many steps as a learner without past data: what lies between the two is what forgetting proper costs.
"""

from __future__ import annotations

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts


class Cumulative(Method):
    """Reads all runs again for every training, and trains on."""

    name = "cumulative"

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        return {i: past(i) for i in range(experience)} | {experience: counts}
