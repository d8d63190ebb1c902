"""One experience: a run is evaluated before it is learnt, learnt, and evaluated with all earlier runs.

The learner of an archive and the offline benchmark share this code, so their figures mean the same. It does not know where
the runs come from.
"""

from __future__ import annotations

import time

import numpy as np

from dqmstream.learners.blank import blank
from dqmstream.learners.evaluation.by_last import figures_by_last
from dqmstream.learners.evaluation.calibration import calibrate
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history_line import BaselineEntry, ByLast, HistoryLine, Watched
from dqmstream.learners.evaluation.matrix_row import Scores, evaluate_row
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Strategy
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.stream.trim_heap import trim_heap


def learn_and_evaluate(state: LearnerState, number: int, run: RunData, past: Past) -> tuple[HistoryLine, Scores | None]:
    """Learn experience `number` (0, 1, 2, ... in order) and evaluate it before and after.

    state: has learnt the experiences before this one, and this one afterwards. past: reads an earlier run again. A watcher
    measures accuracy during the training from the third run on, since the second run is the first training.

    Returns the line of the history, and the scores of the test lumisections (None at the first run: there is nothing to tell
    apart). The line's `seconds` are those of `learn` (the strategy), `watch`, `evaluate` (strategy and baselines),
    `baseline.<name>` (its learning) and `novelty` (the learning of the new-run score).
    """
    strategy, evaluator, novelty = state.strategy, state.evaluator, state.novelty
    clock = Clock()
    again = evaluator.earlier(run.run)
    before = evaluator.before(strategy, novelty, run, state.largest) if len(set(evaluator.runs)) >= 2 and not again else None
    beyond = novelty.beyond(run.maps)
    clock.lap("evaluate")
    learn_log, watched = _learn(strategy, number, run, past, state.watcher if number >= 2 else None, clock)
    baseline_flops = {}
    for name, baseline in state.baselines.items():
        baseline_flops[name] = baseline.learn(number, run, past).flops
        clock.lap(f"baseline.{name}")
    novelty.learn(number, run, past)
    clock.lap("novelty")
    evaluator.add(run)
    if state.watcher is not None:
        state.watcher.add(number, run, again)
    several = len(set(evaluator.runs)) > 1
    figures, scores = _evaluate(strategy, evaluator) if several else (BaselineEntry(), None)
    state.largest = None if scores is None else scores.log_probability.max(axis=1)
    beside = {name: _evaluate(baseline, evaluator)[0] if several else None for name, baseline in state.baselines.items()}
    clock.lap("evaluate")
    line = HistoryLine(
        experience=number,
        run=run.run,
        strategy=strategy.name,
        lumisections={part.name.lower(): int(np.sum(run.parts == part)) for part in Part},
        reference={**(novelty.reference_summary() or {}), "beyond": None if beyond is None else int(beyond.sum())},
        blank=int(np.sum(blank(run.maps.counts))),
        accuracy=figures.accuracy,
        auc=figures.auc,
        auc_fixed=figures.auc_fixed,
        calibration=figures.calibration,
        by_last=figures.by_last,
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
    trim_heap()
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


def _evaluate(strategy: Strategy, evaluator: Evaluator) -> tuple[BaselineEntry, Scores]:
    scores, validation = evaluator.score(strategy), evaluator.score_validation(strategy)
    row = evaluate_row(scores, evaluator.newest())
    calibration = calibrate(scores.log_probability, scores.labels, validation.log_probability, validation.labels)
    figures = BaselineEntry(
        accuracy=row.accuracy,
        auc=row.auc,
        auc_fixed=row.auc_fixed,
        calibration=calibration,
        by_last=_by_last(strategy, evaluator, scores, validation, calibration.temperature),
        memory_bytes=strategy.memory_bytes(),
        state_bytes=strategy.state_bytes(),
    )
    return figures, scores


def _by_last(
    strategy: Strategy, evaluator: Evaluator, test: Scores, validation: Scores, temperature: float | None
) -> list[ByLast]:
    blocks = evaluator.score_blocks(strategy, test)
    if blocks is None:
        return []
    return figures_by_last(blocks, evaluator.newest(), evaluator.score_validation_blocks(strategy, validation), temperature)


class Clock:
    """Seconds spent on each kind of work, since the clock was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, kind: str) -> None:
        """Add the time since the last lap to this kind."""
        now = time.perf_counter()
        self.seconds[kind] = round(self.seconds.get(kind, 0.0) + now - self._at, 4)
        self._at = now
