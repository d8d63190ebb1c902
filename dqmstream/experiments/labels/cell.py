"""A cell of the benchmark of labels: one strategy on one simulated stream whose faults are known.

It uses the same code as the learner of an archive (`learners.stream.label_state`). Lumisections without a fault are good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from dqmstream.experiments.cells.cell import Record, SettingsCell, one_thread
from dqmstream.experiments.provenance import made_by
from dqmstream.experiments.simulator import SimulatedRun, stream
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.label_results import closed_lines
from dqmstream.learners.labels.closed_forms import CLOSED_FORMS
from dqmstream.learners.labels.followed import FollowedGains
from dqmstream.learners.labels.strategy import Period
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part, assign
from dqmstream.learners.stream.label_state import LabelState
from dqmstream.learners.threads import set_threads

_SOURCES = ("experiments/labels/cell.py",)
"""What the figures depend on besides learners and simulator."""

TEST_EVERY = 3
"""In the split by runs, each third run is test."""


def blocks(run: SimulatedRun, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts and labels of a run's lumisections: the blocks of `learners.splits`, the true labels."""
    return assign(np.arange(1, len(run.counts) + 1)), np.where(run.faulty, 0, 1).astype(np.int8)


def unseen(run: SimulatedRun, index: int) -> tuple[np.ndarray, np.ndarray]:
    """As `blocks`, without test lumisections in which a fault acts that acts in a train lumisection of the run too."""
    parts, labels = blocks(run, index)
    train, test = parts == Part.TRAIN, parts == Part.TEST
    for fault in run.faults:
        if (fault.active & train).any():
            labels[fault.active & test] = -1
    return parts, labels


def by_runs(run: SimulatedRun, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole runs: each third is test, the others train. There is no validation, so no temperature is fitted."""
    _, labels = blocks(run, index)
    part = Part.TEST if index % TEST_EVERY == TEST_EVERY - 1 else Part.TRAIN
    return np.full(len(labels), part, dtype=np.uint8), labels


SPLITS: Mapping[str, Callable[[SimulatedRun, int], tuple[np.ndarray, np.ndarray]]] = {
    "blocks": blocks,
    "unseen": unseen,
    "runs": by_runs,
}
"""Splits by name. A fault that spans train and test blocks is in both; `unseen` and `runs` show what that is worth."""


@dataclass(frozen=True)
class LabelCell(SettingsCell):
    """A strategy on a stream. The seed is that of the stream and of the strategy. recipe: changes to the recipe of labels."""

    sources: ClassVar[tuple[str, ...]] = _SOURCES

    stream: str
    seed: int
    strategy: str
    runs: int
    lumisections: int
    memory_bytes: int
    evaluation_samples: int
    split: str
    recipe: str = "{}"

    @property
    def name(self) -> str:
        """Its fields, without characters that a file name should not have."""
        changes = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in self.recipe.strip("{}"))
        size = f"{self.runs}x{self.lumisections}-{self.memory_bytes}-{self.evaluation_samples}"
        return f"{self.stream}-{self.split}-{self.seed}-{self.strategy}-{size}{'-' + changes if changes else ''}"

    def compute(self) -> Record:
        """Compute the record on one thread. "lines": history lines of the runs that end a period."""
        if self.strategy not in CLOSED_FORMS:
            set_threads(1)
        with one_thread():
            began = time.perf_counter()
            followed, looked = look(self.stream, self.seed, self.runs, self.lumisections, self.split)
            state = LabelState(
                self.strategy,
                seed=self.seed,
                recipe=json.loads(self.recipe),
                memory_bytes=self.memory_bytes,
                evaluation_samples=self.evaluation_samples,
                device="cpu",
                beside=(),
            )
            state.followed = followed
            lines = [line if period is None else state.learn_period(line, period) for line, period in looked]
        return {
            "cell": asdict(self),
            "lines": [line.to_json() for line in closed_lines(lines)],
            "seconds": round(time.perf_counter() - began, 3),
            **made_by(*_SOURCES),
        }


@lru_cache(maxsize=1)
def look(
    name: str, seed: int, runs: int, lumisections: int, split: str
) -> tuple[FollowedGains, list[tuple[HistoryLine, Period | None]]]:
    """The gains after the stream, and what each run gives: its line without figures, and the period that it ends, if any.

    It is the same for all strategies, whose cells follow one another.
    """
    state = LabelState("conditions", beside=())
    found = []
    for index, run in enumerate(stream(name, seed=seed, runs=runs, lumisections=lumisections)):
        parts, labels = SPLITS[split](run, index)
        found.append(state.look(index, RunData(run.run, as_maps(run), parts, labels)))
    return state.followed, found
