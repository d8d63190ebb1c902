"""Statistical replay: no past lumisection is kept; all are redrawn from the statistical memory's 1 kB a run.

    L = mean over classes c of CE(f(x), c),    x redrawn from the statistics of run c

f: the network's logits; statistics: `learners.closed_form.statistical`. Each lumisection is seen once. All are drawn under
conditions of the new run, and the new run is redrawn too, so that neither luminosity nor the redrawing differs between classes.
Generative replay (Shin et al. 2017, arXiv:1705.08690) with a closed form as the generator, which does not forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.gradient.method import PastCounts
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

_DRAWS = 1
"""Part of the seed of a training's draws."""


@register_strategy("statistical_replay")
class StatisticalReplay(DeepStrategy):
    """Trains a network on lumisections redrawn from a statistical memory."""

    def __init__(self, *, geometry: Geometry, seed: int, memory_bytes: int, **network: Any) -> None:
        """memory_bytes: budget for all that is kept. network: `recipe` and `device`, as in `DeepStrategy`."""
        super().__init__(
            "statistical_replay",
            Naive,
            geometry=geometry,
            seed=seed,
            memory_bytes=memory_bytes,
            beside_bytes=memory_bytes,
            **network,
        )
        self.statistical = Statistical(geometry, seed, memory_bytes)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        closed = self.statistical.learn_inside(self.reference, experience, train, validation, past)
        log = super()._learn(experience, train, validation, past, watch)
        log.flops += closed.flops
        log.notes |= closed.notes
        return log

    def _material(self, experience: int, counts: np.ndarray, past: PastCounts) -> Mapping[int, np.ndarray]:
        classes = experience + 1
        each = -(-self._steps(experience) * self.recipe.batch // classes)
        rng = np.random.default_rng([self._seed, experience, _DRAWS])
        conditions = counts[rng.integers(len(counts), size=classes * each)]
        drawn = self.statistical.draw(np.repeat(np.arange(classes), each), conditions, rng)
        return {k: drawn[k * each : (k + 1) * each] for k in range(classes)}

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | prefixed("statistical", self.statistical.state())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.statistical.restore(within(state, "statistical"))
        super().restore(state)

    def memory_bytes(self) -> int:
        return super().memory_bytes() + self.statistical.memory_bytes()

    def state_bytes(self) -> int:
        return super().state_bytes() + self.statistical.state_bytes()
