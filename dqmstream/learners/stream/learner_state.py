"""Everything of a learner that a run changes: its strategy, the baselines, the new-run score, and what it is evaluated on.

A checkpoint holds all of it. The lumisections used for evaluation are part of it, so a learner resumes without reading a past
run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import Past, Strategy


@dataclass(eq=False)
class LearnerState:
    """The parts of a learner; all of them have learnt the same runs.

    baselines: by name. watcher: None where trainings are not watched. largest: the largest log-probability of each test
    lumisection in the last evaluation of the strategy, (n,); None where there was none since the state was made or restored.
    """

    strategy: Strategy
    baselines: Mapping[str, Strategy]
    novelty: Novelty
    evaluator: Evaluator
    watcher: Watcher | None = None
    largest: np.ndarray | None = None

    def set_reference(self, reference: Reference) -> None:
        """Use this reference in place of the first run; to be called before anything is learnt or restored."""
        for one in (self.strategy, *self.baselines.values()):
            one.set_reference(reference)
        self.novelty.set_reference(reference)

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays."""
        arrays = prefixed("strategy", self.strategy.state())
        for name, baseline in self.baselines.items():
            arrays |= prefixed(f"baseline.{name}", baseline.state())
        arrays |= prefixed("novelty", self.novelty.state()) | prefixed("judged", self.evaluator.state())
        return arrays | (prefixed("watched", self.watcher.state()) if self.watcher is not None else {})

    def restore(self, arrays: Mapping[str, np.ndarray], learnt: int, past: Past) -> None:
        """Take back what `arrays` gave after `learnt` runs. Raises StateError if it is damaged or of another learner.

        past: reads a run again. Used only for what the checkpoint of an older version does not hold.
        """
        self.largest = None
        self.strategy.restore(within(arrays, "strategy"))
        for name, baseline in self.baselines.items():
            baseline.restore(within(arrays, f"baseline.{name}"))
        novelty, judged, watched = (within(arrays, name) for name in ("novelty", "judged", "watched"))
        if has_novelty := Novelty.holds_all(novelty):
            self.novelty.restore(novelty)
        if judged:
            self.evaluator.restore(judged)
        if self.watcher is not None and watched:
            self.watcher.restore(watched)
        has_watched = self.watcher is None or bool(watched)
        for number in range(0 if has_novelty and judged and has_watched else learnt):
            run = past(number)
            if not judged:
                self.evaluator.add(run)
            if not has_novelty:
                self.novelty.learn(number, run, past)
            if self.watcher is not None and not has_watched:
                self.watcher.add(number, run)
