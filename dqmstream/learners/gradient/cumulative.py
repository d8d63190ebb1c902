"""Cumulative: the same network goes on training, on all runs seen so far, read again from the archive.

    L = mean over groups g of CE(f(x), label of g),    x from group g

f: the network's logits. A bound, as joint is: it keeps nothing and reads every run again, so the memory budget does not apply.
Unlike joint it starts from its weights, and takes as many steps as a learner without past data; what it has over such a
learner is the cost of forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.strategy import register_method


@register_method("cumulative")
class Cumulative(Method):
    """Reads all runs again for every training."""

    name = "cumulative"
    reads_past = True

    def material(self, experience: int, new: Mapping[int, np.ndarray], past: PastCounts) -> dict[int, np.ndarray]:
        return {group: rows for i in range(experience) for group, rows in past(i).items()} | dict(new)
