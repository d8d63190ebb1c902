"""The evaluator of the task of labels: keeps test and validation rows of every period, gives R[t, i] and the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.calibration import calibrate
from dqmstream.learners.evaluation.history_line import BaselineEntry
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.labels.rows import FAULTY, GOOD, Rows, joined
from dqmstream.learners.labels.strategy import LabelStrategy, Period
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part

VALIDATION_SHARE = 3
"""Test rows for one validation row, as in the split (`learners.splits`)."""


@dataclass(frozen=True)
class Measured:
    """accuracy: share of lumisections with the right label. auc: of the log-odds, faulty against good."""

    accuracy: float
    auc: float


class PeriodEvaluator:
    """budget: test rows over all periods. Where there are more, each period keeps an equal share, of both labels."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._tests: list[Rows] = []
        self._validations: list[Rows] = []

    def add(self, period: Period) -> None:
        """Add the test and validation rows of the next period."""
        for kept, part, budget in (
            (self._tests, Part.TEST, self.budget),
            (self._validations, Part.VALIDATION, max(1, self.budget // VALIDATION_SHARE)),
        ):
            kept.append(period.rows.of(part))
            share = max(2, budget // len(kept))
            kept[:] = [_drawn(rows, share, number) for number, rows in enumerate(kept)]

    def measure(self, strategy: LabelStrategy, period: Period) -> Measured:
        """Accuracy and AUC on the test rows of a period that is not learnt yet."""
        rows = period.rows.of(Part.TEST)
        return _measured(strategy.scores(rows), rows.label)

    def figures(self, strategy: LabelStrategy) -> BaselineEntry:
        """Row t of both matrices, an entry for each period so far, and the calibration over all of them."""
        tests, validation = joined(self._tests), joined(self._validations)
        scores = strategy.scores(tests)
        ends = np.cumsum([len(rows) for rows in self._tests])
        of_periods = zip(np.split(scores, ends[:-1]), self._tests, strict=True)
        measured = [_measured(part, rows.label) for part, rows in of_periods]
        return BaselineEntry(
            accuracy=[one.accuracy for one in measured],
            auc=[one.auc for one in measured],
            calibration=calibrate(scores, tests.label, strategy.scores(validation), validation.label),
            memory_bytes=strategy.memory_bytes(),
            state_bytes=strategy.state_bytes(),
        )

    def state(self) -> dict[str, np.ndarray]:
        """The kept rows, as named arrays."""
        if not self._tests:
            return {}
        state: dict[str, np.ndarray] = {}
        for name, kept in (("test", self._tests), ("validation", self._validations)):
            state |= prefixed(name, joined(kept).state() | {"sizes": np.array([len(rows) for rows in kept], dtype=np.int64)})
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        self._tests, self._validations = (_parts(within(state, name)) for name in ("test", "validation"))
        if len(self._tests) != len(self._validations):
            raise StateError("the state holds test lumisections of other periods than validation lumisections; it is damaged")


def _measured(scores: np.ndarray, label: np.ndarray) -> Measured:
    odds = scores[:, FAULTY] - scores[:, GOOD]
    return Measured(float(np.mean((odds > 0) == (label == FAULTY))), auc(odds[label == FAULTY], odds[label == GOOD]))


def _drawn(rows: Rows, count: int, number: int) -> Rows:
    """At most `count` rows in their order, with the shares of the labels kept and one of each at least.

    A larger count draws a superset. number: of the period.
    """
    if len(rows) <= count:
        return rows
    order = np.random.default_rng(number).permutation(len(rows))
    first = [order[rows.label[order] == label][:1] for label in (GOOD, FAULTY)]
    order = np.concatenate([*first, order[~np.isin(order, np.concatenate(first))]])
    return rows.take(np.sort(order[:count]))


def _parts(state: Mapping[str, np.ndarray]) -> list[Rows]:
    if not state:
        return []
    rows = Rows.from_state(state)
    if "sizes" not in state or int(np.sum(state["sizes"])) != len(rows):
        raise StateError("the state's labelled lumisections do not have the sizes of its periods; it is damaged")
    ends = np.cumsum(state["sizes"])
    return [rows.take(np.arange(end - size, end)) for end, size in zip(ends, state["sizes"], strict=True)]
