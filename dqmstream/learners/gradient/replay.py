"""Replay: train on the new run and on lumisections kept of past runs, every group with the same share of each batch.

    L = mean over groups g of CE(f(x), label of g),    x from the new experience or from the memory

f: the network's logits. Source: experience replay as in Chaudhry et al. 2019 (arXiv:1902.10486), with balanced batches. The
recipe's `memory` chooses which lumisections are kept (`learners.memory.selection`). The memory gives places up only after a
training, so exemplars that must go are trained on once more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.learners.gradient.method import Inputs, Method, PastCounts
from dqmstream.learners.gradient.packed import PackedExemplars
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.networks.base import Network


@register_method("cnn")
@register_method("replay")
class Replay(Method):
    """Keeps a few lumisections of each group. The strategy `cnn` is replay with a convolutional network."""

    name = "replay"
    _memory: ExemplarMemory | PackedExemplars | None = None

    def material(self, experience: int, new: Mapping[int, np.ndarray], past: PastCounts) -> dict[int, np.ndarray]:
        kept = {group: rows for group, rows in enumerate(self.exemplars()) if len(rows)}
        if isinstance(self._memory, PackedExemplars):
            new = {group: self._memory.rounded(rows) for group, rows in new.items()}
        return kept | dict(new)

    def keep(self, new: Mapping[int, np.ndarray], inputs: Inputs) -> None:
        for rows in new.values():
            if self._memory is None:
                self._memory = self._empty(rows.shape[1], least=1)
            if isinstance(self._memory, PackedExemplars) and self.reference is not None:
                self._memory.use(self.reference)
            self._memory.budget_bytes = self.budget_bytes
            self._memory.add(rows, inputs)

    def _empty(self, channels: int, least: int) -> ExemplarMemory | PackedExemplars:
        if self.recipe.packed and self.reference is not None:
            return PackedExemplars(self.reference, self.budget_bytes, self.seed, self.recipe.memory, least)
        return ExemplarMemory(channels, self.budget_bytes, self.seed, self.recipe.memory, least)

    def exemplars(self) -> list[np.ndarray]:
        """Rows kept of each group."""
        return [] if self._memory is None else [self._memory.of(i) for i in range(self._memory.classes)]

    def notes(self) -> dict[str, float]:
        sizes = [] if self._memory is None else self._memory.sizes
        return (
            {"exemplars_most": max(sizes), "exemplars_fewest": min(sizes), "runs_without_exemplars": sizes.count(0)}
            if sizes
            else {}
        )

    def state(self) -> dict[str, np.ndarray]:
        return {} if self._memory is None else self._memory.state()

    def restore(self, state: Mapping[str, np.ndarray], model: Network) -> None:
        self._memory = self._empty(model.row_values, least=0)
        self._memory.restore(state)

    def memory_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.memory_bytes()
