"""One experience of a stream: judged before it is learnt, learnt, judged after; the line of history that this makes.

The learner beside an archive and the offline benchmark both go through here, so a figure of one means what it means in the
other. Nothing here knows where the runs come from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.learners.evaluation import Evaluator, Scores, evaluate_row
from dqmstream.learners.history import Line
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Past, RunData, Strategy


def learn_and_judge(
    strategy: Strategy, baselines: Mapping[str, Strategy], evaluator: Evaluator, number: int, run: RunData, past: Past
) -> tuple[Line, Scores | None]:
    """Learn experience `number` (0, 1, 2, ... without a hole) and judge it.

    strategy, baselines and evaluator have seen the experiences before this one, and have seen this one afterwards.

    Returns the line of history, and what the evaluation said of each test lumisection (None at the first run: there is
    nothing to tell apart). Its seconds are those of `learn` (the strategy's own), `baselines` (theirs), `evaluate` (all).
    """
    clock = Clock()
    before = asdict(evaluator.before(strategy, run)) if number >= 2 else None
    clock.lap("evaluate")
    learn_log = strategy.learn(number, run, past)
    clock.lap("learn")
    for baseline in baselines.values():
        baseline.learn(number, run, past)
    clock.lap("baselines")
    evaluator.add(run)
    scores = evaluator.score(strategy) if number else None
    row = evaluate_row(scores) if scores else None
    beside = {name: _judge_baseline(baseline, evaluator) if number else None for name, baseline in baselines.items()}
    clock.lap("evaluate")
    line: Line = {
        "experience": number,
        "run": run.run,
        "strategy": strategy.name,
        "lumisections": {part.name.lower(): int(np.sum(run.parts == part)) for part in Part},
        "accuracy": row.accuracy if row else None,
        "auc": row.auc if row else None,
        "baselines": beside,
        "before": before,
        "loss": [round(value, 6) for value in learn_log.loss],
        "samples": learn_log.samples,
        "notes": learn_log.notes,
        "memory_bytes": strategy.memory_bytes(),
        "state_bytes": strategy.state_bytes(),
        "seconds": clock.seconds,
    }
    return line, scores


def _judge_baseline(baseline: Strategy, evaluator: Evaluator) -> dict[str, Any]:
    return {
        **asdict(evaluate_row(evaluator.score(baseline))),
        "memory_bytes": baseline.memory_bytes(),
        "state_bytes": baseline.state_bytes(),
    }


class Clock:
    """Seconds spent on each kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, kind: str) -> None:
        """Count the time since the last lap as of this kind."""
        now = time.perf_counter()
        self.seconds[kind] = round(self.seconds.get(kind, 0.0) + now - self._at, 4)
        self._at = now
