"""All of a learner that a run changes, and that a checkpoint therefore holds: strategy, baselines, new-run score, and judges.

What the judges look at is kept with them, so that a learner goes on without reading a past run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dqmstream.learners.evaluation.evaluator import Evaluator, Scores
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.strategy import Past, Strategy
from dqmstream.learners.stream.experience import learn_and_judge


@dataclass(frozen=True, eq=False)
class Taught:
    """Strategy, baselines by name, new-run score, evaluator, and watcher if there is one; all have seen the same runs."""

    strategy: Strategy
    baselines: Mapping[str, Strategy]
    novelty: Novelty
    evaluator: Evaluator
    watcher: Watcher | None

    def set_reference(self, reference: Reference) -> None:
        """Take this reference in place of the first run's, before anything is learnt or taken back."""
        for one in (self.strategy, *self.baselines.values()):
            one.set_reference(reference)
        self.novelty.set_reference(reference)

    def learn(self, number: int, run: RunData, past: Past) -> tuple[HistoryLine, Scores | None]:
        """`learners.stream.experience.learn_and_judge`."""
        return learn_and_judge(self.strategy, self.baselines, self.evaluator, self.novelty, number, run, past, self.watcher)

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as named arrays."""
        arrays = prefixed("strategy", self.strategy.state())
        for name, baseline in self.baselines.items():
            arrays |= prefixed(f"baseline.{name}", baseline.state())
        arrays |= prefixed("novelty", self.novelty.state()) | prefixed("judged", self.evaluator.state())
        return arrays | (prefixed("watched", self.watcher.state()) if self.watcher is not None else {})

    def restore(self, arrays: Mapping[str, np.ndarray], learnt: int, past: Past) -> None:
        """Take back what `state` gave after so many runs. Raises StateError if it is damaged or of another learner.

        past: reads the runs once more for what a checkpoint of an older version lacks, and only then.
        """
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
