"""Replay: train on the new run and on lumisections kept of past runs, every class with the same share of each batch.

    L = mean over classes c of CE(f(x), c),    x from the new run or from the memory

f: the network's logits. Source: experience replay as in Chaudhry et al. 2019 (arXiv:1902.10486), with balanced batches. The
recipe's `memory` chooses which lumisections are kept (`learners.memory.selection`). The memory gives places up only after a
training, so exemplars that must go are trained on once more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.networks.base import Network
from dqmstream.learners.response.reference import Reference


@register_method("cnn")
@register_method("replay")
class Replay(Method):
    """Keeps raw counts of a few lumisections of each run. The strategy `cnn` is replay with a convolutional network."""

    name = "replay"
    _memory: ExemplarMemory | None = None

    def material(self, experience: int, counts: np.ndarray, past: PastCounts) -> dict[int, np.ndarray]:
        kept = {i: rows for i, rows in enumerate(self.exemplars()) if len(rows)}
        return kept | {experience: counts}

    def keep(self, experience: int, counts: np.ndarray, reference: Reference) -> None:
        if self._memory is None:
            self._memory = self._empty(counts.shape[1], least=1)
        self._memory.budget_bytes = self.budget_bytes
        self._memory.add(counts, reference.residuals_of_live)

    def _empty(self, channels: int, least: int) -> ExemplarMemory:
        return ExemplarMemory(channels, self.budget_bytes, self.seed, self.recipe.memory, least)

    def exemplars(self) -> list[np.ndarray]:
        """Counts (n, live) kept of each run."""
        return [] if self._memory is None else [self._memory.of(i) for i in range(self._memory.classes)]

    def notes(self) -> dict[str, float]:
        sizes = [len(rows) for rows in self.exemplars()]
        return (
            {"exemplars_most": max(sizes), "exemplars_fewest": min(sizes), "runs_without_exemplars": sizes.count(0)}
            if sizes
            else {}
        )

    def state(self) -> dict[str, np.ndarray]:
        return {} if self._memory is None else self._memory.state()

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        self._memory = self._empty(model.channels, least=0)
        self._memory.restore(state)

    def memory_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.memory_bytes()
