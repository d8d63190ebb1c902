"""What a learner does at a run, by its task: runs are told apart, or lumisections are told good from faulty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import results
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.label_results import label_results
from dqmstream.learners.evaluation.matrix_row import Scores
from dqmstream.learners.evaluation.stability_gap import Watcher
from dqmstream.learners.labels.followed import why_left_out as why_no_labels
from dqmstream.learners.learnable import why_left_out
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import LIVE_BASELINES, make_strategy, recipe_of
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.strategy import Past, Strategy
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.label_state import LabelState
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.task import LABELS
from dqmstream.lumisection import Geometry


class TaskState(Protocol):
    """Everything of a learner that a run changes, and what is done at a run."""

    @property
    def name(self) -> str:
        """Of the strategy."""
        ...

    @property
    def runs(self) -> list[int]:
        """The run of each experience so far."""
        ...

    def set_reference(self, reference: Reference) -> None:
        """Use this reference in place of the first run; to be called before anything is learnt or restored."""
        ...

    def why_left_out(self, run: RunData, *, as_reference: bool) -> str:
        """Why a run cannot be learnt; "" where it can. as_reference: the reference is fitted to it."""
        ...

    def learn(self, number: int, run: RunData, past: Past) -> tuple[HistoryLine, Scores | None]:
        """Learn the next run; returns its line, and the scores of the test lumisections where these are to be stored."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], learnt: int, past: Past) -> None:
        """Take back what `arrays` gave after so many runs. past: reads a run again, for what older states lack."""
        ...

    def status(self) -> dict[str, Any]:
        """Entries of status.json."""
        ...

    def results(self, lines: list[HistoryLine]) -> dict[str, Any]:
        """The results of a history, ready for JSON."""
        ...


class RunState:
    """The task of runs: `LearnerState` and what is done with it."""

    def __init__(self, settings: LearnerSettings, geometry: Geometry, own: Strategy | None) -> None:
        """own: a strategy object in place of the one that the settings name."""
        self.strategy = own or make_strategy(
            settings.strategy,
            geometry=geometry,
            seed=settings.seed,
            recipe=recipe_of(settings.strategy, settings.recipe),
            memory_bytes=settings.memory_bytes,
            device=settings.device,
        )
        self.evaluator = Evaluator(settings.evaluation_samples)
        self.parts = LearnerState(
            self.strategy,
            {name: make_strategy(name, geometry=geometry, seed=settings.seed) for name in LIVE_BASELINES},
            Novelty(geometry, settings.seed),
            self.evaluator,
            Watcher(settings.watch_samples) if settings.watch_samples else None,
        )

    @property
    def name(self) -> str:
        return self.strategy.name

    @property
    def runs(self) -> list[int]:
        return self.evaluator.runs

    def set_reference(self, reference: Reference) -> None:
        self.parts.set_reference(reference)

    def why_left_out(self, run: RunData, *, as_reference: bool) -> str:
        return why_left_out(run, as_reference=as_reference)

    def learn(self, number: int, run: RunData, past: Past) -> tuple[HistoryLine, Scores | None]:
        return learn_and_evaluate(self.parts, number, run, past)

    def arrays(self) -> dict[str, np.ndarray]:
        return self.parts.arrays()

    def restore(self, arrays: Mapping[str, np.ndarray], learnt: int, past: Past) -> None:
        self.parts.restore(arrays, learnt, past)

    def status(self) -> dict[str, Any]:
        novelty = self.parts.novelty
        return {
            "reference_taught": novelty.reference_summary(),
            "alarms": novelty.alarms_summary(),
            "law": novelty.law_summary(),
        }

    def results(self, lines: list[HistoryLine]) -> dict[str, Any]:
        return results(lines)


class LabelTaskState(LabelState):
    """The task of labels, in a learner."""

    def why_left_out(self, run: RunData, *, as_reference: bool) -> str:
        return why_no_labels(run, as_reference=as_reference)

    def learn(self, number: int, run: RunData, past: Past) -> tuple[HistoryLine, Scores | None]:
        return self.learn_run(number, run), None

    def status(self) -> dict[str, Any]:
        return {"task": LABELS.name, "periods": self.periods, "waiting_runs": self.waiting}

    def results(self, lines: list[HistoryLine]) -> dict[str, Any]:
        return label_results(lines)


def task_state(settings: LearnerSettings, geometry: Geometry, own: Strategy | None) -> RunState | LabelTaskState:
    """What a learner with these settings keeps. Raises InputError for settings that do not belong to the task."""
    if settings.task != LABELS.name:
        return RunState(settings, geometry, own)
    if own is not None:
        raise InputError(f"{own.name} learns runs: a learner of labels takes the name of a strategy")
    for name in ("window", "watch_samples"):
        if getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} is for the task of runs: leave it out, or --task labels")
    return LabelTaskState(
        settings.strategy,
        seed=settings.seed,
        recipe=settings.recipe,
        memory_bytes=settings.memory_bytes,
        evaluation_samples=settings.evaluation_samples,
        device=settings.device,
    )
