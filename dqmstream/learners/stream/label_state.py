"""Everything of a learner of labels that a run changes, and what happens at one run.

    rows of the run, under the gains of the runs before it -> gains are followed -> the run waits, or ends a period
    -> the period is evaluated before it is learnt -> learnt -> evaluated with all earlier periods

The learner of an archive and the offline benchmark share this code, so their figures mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dqmstream.learners.blank import blank
from dqmstream.learners.evaluation.history_line import BaselineEntry, HistoryLine, PeriodEntry
from dqmstream.learners.evaluation.label_results import entry_of
from dqmstream.learners.labels.closed_forms import CLOSED_FORMS
from dqmstream.learners.labels.evaluator import PeriodEvaluator
from dqmstream.learners.labels.followed import FollowedGains, labels_of
from dqmstream.learners.labels.registry import make_label_strategy, resolve_label
from dqmstream.learners.labels.strategy import LabelStrategy, OpenPeriod, Period
from dqmstream.learners.maps import RunData
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past
from dqmstream.learners.stream.experience import Clock


class LabelState:
    """A strategy for labels with all that it needs, and closed forms beside it.

    runs: of each experience so far.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int = 0,
        recipe: Mapping[str, Any] | None = None,
        memory_bytes: int = 1_000_000,
        evaluation_samples: int = 6000,
        device: str = "auto",
        beside: Sequence[str] = tuple(CLOSED_FORMS),
    ) -> None:
        """name, recipe, memory_bytes, device: as for `make_label_strategy`. beside: closed forms that learn the same periods.

        evaluation_samples: test lumisections that an evaluation scores, over all periods.
        """
        self.name = resolve_label(name)
        self.runs: list[int] = []
        self._settings: dict[str, Any] = {"seed": seed, "recipe": recipe, "memory_bytes": memory_bytes, "device": device}
        self._beside = [other for other in beside if other != self.name]
        self.followed = FollowedGains()
        self.evaluator = PeriodEvaluator(evaluation_samples)
        self._open = OpenPeriod()
        self._strategies: dict[str, LabelStrategy] = {}

    def set_reference(self, reference: Reference) -> None:
        """Use this reference in place of the first run; to be called before anything is learnt or restored."""
        self.followed.set_reference(reference)

    @property
    def strategy(self) -> LabelStrategy:
        """The strategy; made at the first run, which says which channels there are."""
        return self._made()[self.name]

    def _made(self) -> dict[str, LabelStrategy]:
        if not self._strategies:
            live = self.followed.live
            self._strategies = {name: make_label_strategy(name, live, **self._settings) for name in (self.name, *self._beside)}
        return self._strategies

    @property
    def periods(self) -> int:
        """Number of periods that have ended."""
        return self._open.ended

    @property
    def waiting(self) -> list[int]:
        """Runs of the period that goes on."""
        return self._open.runs

    def learn_run(self, number: int, run: RunData) -> HistoryLine:
        """Learn the next run, which has passed `labels.followed.why_left_out`; returns its line of the history."""
        line, period = self.look(number, run)
        return line if period is None else self.learn_period(line, period)

    def look(self, number: int, run: RunData) -> tuple[HistoryLine, Period | None]:
        """Follow the gains of the next run; returns its line without figures, and the period where it ends one.

        The first run gives the reference and the first gains. No period holds it: its residuals would be to itself.
        """
        clock = Clock()
        labels = labels_of(run)
        void = blank(run.maps.counts)
        entry = PeriodEntry(
            number=None,
            runs=[],
            good=int(np.sum((labels == 1) & ~void)),
            faulty=int(np.sum((labels == 0) & ~void)),
            unlabelled=int(np.sum(labels < 0)),
        )
        period: Period | None = None
        line = HistoryLine(
            experience=number,
            run=run.run,
            strategy=self.name,
            lumisections={part.name.lower(): int(np.sum(run.parts == part)) for part in Part},
            blank=int(void.sum()),
            samples=0,
            period=entry,
        )
        if self.followed.runs:
            rows = self.followed.rows(run)
            entry = replace(entry, runs=[*self._open.runs, run.run])
            period = self._open.add(run.run, rows)
        self.followed.follow(run)
        clock.lap("follow")
        self.runs.append(run.run)
        if period is not None:
            entry = replace(entry, number=period.number)
        return replace(line, period=entry, seconds=clock.seconds), period

    def learn_period(self, line: HistoryLine, period: Period) -> HistoryLine:
        """Evaluate the strategies on a period, learn it, and evaluate them again; returns the line with the figures."""
        clock = Clock()
        entry = entry_of(line)
        if period.number:
            before = self.evaluator.measure(self.strategy, period)
            entry = replace(entry, accuracy_before=before.accuracy, auc_before=before.auc)
        self.evaluator.add(period)
        clock.lap("evaluate")
        logs: dict[str, LearnLog] = {}
        for name, strategy in self._made().items():
            logs[name] = strategy.learn(period)
            clock.lap("learn" if name == self.name else f"baseline.{name}")
        figures = {name: self.evaluator.figures(strategy) for name, strategy in self._made().items()}
        clock.lap("evaluate")
        own, log = figures.pop(self.name), logs.pop(self.name)
        baselines: dict[str, BaselineEntry | None] = dict(figures)
        return replace(
            line,
            period=entry,
            accuracy=own.accuracy,
            auc=own.auc,
            calibration=own.calibration,
            baselines=baselines,
            loss=[round(value, 6) for value in log.loss],
            samples=log.samples,
            notes=log.notes,
            flops=log.flops,
            baseline_flops={name: of_it.flops for name, of_it in logs.items()},
            memory_bytes=own.memory_bytes,
            state_bytes=own.state_bytes,
            seconds=line.seconds | clock.seconds,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays."""
        arrays = {"runs": np.array(self.runs, dtype=np.int64)}
        arrays |= prefixed("followed", self.followed.state()) | prefixed("open", self._open.state())
        arrays |= prefixed("judged", self.evaluator.state())
        for name, strategy in self._strategies.items():
            arrays |= prefixed(f"strategy.{name}", strategy.state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray], learnt: int, past: Past) -> None:
        """Take back what `arrays` gave. Raises StateError if it is damaged or of another learner."""
        self.runs = [int(run) for run in arrays.get("runs", ())]
        self.followed.restore(within(arrays, "followed"))
        self._open.restore(within(arrays, "open"))
        self.evaluator.restore(within(arrays, "judged"))
        self._strategies = {}
        for name in (self.name, *self._beside):
            state = within(arrays, f"strategy.{name}")
            if state:
                self._made()[name].restore(state)
