"""Statistical replay: no past lumisection is kept; all are redrawn from the statistical memory's 1 kB a run.

    L = mean over classes c of CE(f(x), c),    x redrawn from the statistics of run c

f: the network's logits; statistics: `learners.closed_form.statistical`. Each lumisection is seen once. All are drawn under
conditions of the new run, and the new run is redrawn too, so that neither luminosity nor the redrawing differs between classes.
Generative replay (Shin et al. 2017, arXiv:1705.08690) with a closed form as the generator, which does not forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.gradient.method import Method, PastCounts
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.maps import Maps
from dqmstream.learners.registry import register_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry

_DRAWS = 1
"""Part of the seed of a training's draws."""


class StatisticalReplay(DeepStrategy):
    """Trains a network on lumisections redrawn from a statistical memory."""

    share_method: ClassVar[float] = 0.0
    """Largest part of the budget for what the method keeps. The statistics come first."""

    def __init__(
        self, name: str, method: type[Method], *, geometry: Geometry, seed: int, memory_bytes: int, **network: Any
    ) -> None:
        """memory_bytes: budget for all that is kept. network: `recipe` and `device`. All else as in `DeepStrategy`."""
        beside_bytes = memory_bytes - int(self.share_method * memory_bytes)
        super().__init__(
            name, method, geometry=geometry, seed=seed, memory_bytes=memory_bytes, beside_bytes=beside_bytes, **network
        )
        self._share_bytes = beside_bytes + self._method.budget_bytes
        self.statistical = Statistical(geometry, seed, self._share_bytes)

    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        closed = self._learn_statistics(experience, train, validation, past)
        self._share_out()
        log = super()._learn(experience, train, validation, past, watch)
        log.flops += closed.flops
        log.notes |= closed.notes
        return log

    def _learn_statistics(self, experience: int, train: Maps, validation: Maps, past: Past) -> LearnLog:
        """Learn the run in closed form, before the network does."""
        return self.statistical.learn_inside(self.reference, experience, train, validation, past)

    def _share_out(self) -> None:
        """Give the bytes that the statistics do not use to what else is kept."""

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
        self._share_out()
        super().restore(state)

    def memory_bytes(self) -> int:
        return super().memory_bytes() + self.statistical.memory_bytes()

    def state_bytes(self) -> int:
        return super().state_bytes() + self.statistical.state_bytes()


@register_strategy("statistical_replay")
def statistical_replay(**arguments: Any) -> StatisticalReplay:
    """Statistical replay that keeps no lumisection."""
    return StatisticalReplay("statistical_replay", Naive, **arguments)
