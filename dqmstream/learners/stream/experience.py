"""One experience of a stream: judged before it is learnt, learnt, judged after; the line of history that this makes.

The learner beside an archive and the offline benchmark both go through here, so a figure of one means what it means in the
other. Nothing here knows where the runs come from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from dqmstream.learners.blank import blank
from dqmstream.learners.evaluation.calibration import calibrate
from dqmstream.learners.evaluation.evaluator import Evaluator, Scores, evaluate_row
from dqmstream.learners.evaluation.history_line import BaselineEntry, HistoryLine, Watched
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Strategy
from dqmstream.learners.stream.heap import give_back


def learn_and_judge(
    strategy: Strategy,
    baselines: Mapping[str, Strategy],
    evaluator: Evaluator,
    novelty: Novelty,
    number: int,
    run: RunData,
    past: Past,
    watcher: Watcher | None = None,
) -> tuple[HistoryLine, Scores | None]:
    """Learn experience `number` (0, 1, 2, ... without a hole) and judge it.

    strategy, baselines, evaluator, novelty and watcher have seen the experiences before this one, and this one afterwards.
    watcher: looks at the strategy in the course of its training, from the third run on (the second is the first training).

    Returns the line of history, and what the evaluation said of each test lumisection (None at the first run: there is
    nothing to tell apart). `reference` says what the reference of the new-run score has been taught, this run included, and
    how many lumisections of this run lay beyond what it had been taught before. `seconds` are those of `learn` (the
    strategy's own, without what was watched), `watch`, `evaluate` (strategy and baselines), `baseline.<name>` (its learning)
    and `novelty` (the learning of the new-run score).
    """
    clock = Clock()
    again = evaluator.earlier(run.run)
    before = evaluator.before(strategy, novelty, run) if len(set(evaluator.runs)) >= 2 and not again else None
    beyond = novelty.beyond(run.maps)
    clock.lap("evaluate")
    learn_log, watched = _learn(strategy, number, run, past, watcher if number >= 2 else None, clock)
    baseline_flops = {}
    for name, baseline in baselines.items():
        baseline_flops[name] = baseline.learn(number, run, past).flops
        clock.lap(f"baseline.{name}")
    novelty.learn(number, run, past)
    clock.lap("novelty")
    evaluator.add(run)
    if watcher is not None:
        watcher.add(number, run, again)
    several = len(set(evaluator.runs)) > 1
    judged, scores = _judge(strategy, evaluator) if several else (BaselineEntry(), None)
    beside = {name: _judge(baseline, evaluator)[0] if several else None for name, baseline in baselines.items()}
    clock.lap("evaluate")
    line = HistoryLine(
        experience=number,
        run=run.run,
        strategy=strategy.name,
        lumisections={part.name.lower(): int(np.sum(run.parts == part)) for part in Part},
        reference={**(novelty.reference_summary() or {}), "beyond": None if beyond is None else int(beyond.sum())},
        blank=int(np.sum(blank(run.maps.counts))),
        accuracy=judged.accuracy,
        auc=judged.auc,
        auc_fixed=judged.auc_fixed,
        calibration=judged.calibration,
        baselines=beside,
        before=before,
        watched=watched,
        loss=[round(value, 6) for value in learn_log.loss],
        samples=learn_log.samples,
        notes=learn_log.notes,
        flops=learn_log.flops,
        baseline_flops=baseline_flops,
        memory_bytes=strategy.memory_bytes(),
        state_bytes=strategy.state_bytes(),
        seconds=clock.seconds,
    )
    give_back()
    return line, scores


def _learn(
    strategy: Strategy, number: int, run: RunData, past: Past, watcher: Watcher | None, clock: Clock
) -> tuple[LearnLog, Watched | None]:
    if watcher is None:
        learn_log = strategy.learn(number, run, past)
        clock.lap("learn")
        return learn_log, None

    def watch() -> None:
        clock.lap("learn")
        watcher.call(strategy)
        clock.lap("watch")

    learn_log = strategy.learn(number, run, past, watch)
    clock.lap("learn")
    watched = watcher.end(strategy)
    clock.lap("watch")
    return learn_log, watched


def _judge(strategy: Strategy, evaluator: Evaluator) -> tuple[BaselineEntry, Scores]:
    scores, validation = evaluator.score(strategy), evaluator.score_validation(strategy)
    row = evaluate_row(scores, evaluator.newest())
    entry = BaselineEntry(
        accuracy=row.accuracy,
        auc=row.auc,
        auc_fixed=row.auc_fixed,
        calibration=calibrate(scores.log_probability, scores.labels, validation.log_probability, validation.labels),
        memory_bytes=strategy.memory_bytes(),
        state_bytes=strategy.state_bytes(),
    )
    return entry, scores


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
