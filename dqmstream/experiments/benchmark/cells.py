"""A cell of a benchmark: one strategy over one stream, run by run, saved when it is finished.

A cell goes through the same code as the live learner (`learners.stream.experience`); only the archive is left out, and the
runs come from
the simulator as they would come from it. A bound's cell holds the same kind of lines, without anything learnt.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from dqmstream.experiments.benchmark.bounds import BOUNDS, IDEAL, RunTruth, ideal, ideal_profiled
from dqmstream.experiments.provenance import code_digest, commit, versions
from dqmstream.experiments.simulator import LIVE, SimulatedRun, stream
from dqmstream.experiments.statistics import effective_count
from dqmstream.learners.evaluation.evaluator import Evaluator, Scores, evaluate_row
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import GRADIENT, make_strategy, recipe_of
from dqmstream.learners.splits import Split
from dqmstream.learners.stream.experience import learn_and_judge
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads would mix the random numbers of cells: torch has one state a process."""


@dataclass(frozen=True)
class Cell:
    """What a cell is; its figures depend on this, on the code (`provenance.code_digest`), and on the libraries' versions.

    order: 0 for the runs as they were drawn, o for a permutation of its own; the first is the reference. split, fold: of
    `learners.splits.Split`. The strategy's own seed is that of the stream. recipe: changes to the strategy's own, as
    JSON with sorted names, "" for none.
    """

    stream: str
    seed: int
    order: int
    strategy: str
    runs: int
    lumisections: int
    memory_bytes: int
    evaluation_samples: int
    split: str = "blocks"
    fold: int = 0
    recipe: str = ""

    @property
    def name(self) -> str:
        """What its file and its task are called: no two cells share it."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.stream}-{self.seed}-{self.order}-{self.strategy}-{digest}"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Compute a cell on one thread; cells that come to one process at once wait for each other. Raises InputError for an
    unknown strategy.

    Returns its lines of history, seconds and where they come from, and as "worth" how many independent lumisections the test
    lumisections of its last line are worth (`statistics.effective_count`), None where there was no second run.
    """
    with _ONE_AT_A_TIME, threadpool_limits(1):
        began = time.perf_counter()
        simulated = ordered(
            list(stream(cell.stream, seed=cell.seed, runs=cell.runs, lumisections=cell.lumisections)), cell.seed, cell.order
        )
        split = Split(cell.split, seed=cell.seed, fold=cell.fold)
        judge = bound_lines if cell.strategy in BOUNDS else learnt_lines
        lines, scores = judge(cell, simulated, split)
    worth = None
    if scores is not None:
        worth = effective_count(scores.log_probability.argmax(axis=1), scores.labels, scores.lumisection)
    return {
        "cell": asdict(cell),
        "lines": [line.to_json() for line in lines],
        "worth": worth,
        "seconds": round(time.perf_counter() - began, 3),
        "code": code_digest(),
        "commit": commit(),
        "versions": versions(),
    }


def ordered(runs: list[SimulatedRun], seed: int, order: int) -> list[SimulatedRun]:
    """The runs in the order of that number: 0 as drawn, else a permutation that seed and order name."""
    return runs if order == 0 else [runs[i] for i in np.random.default_rng([seed, order]).permutation(len(runs))]


def as_run_data(run: SimulatedRun, split: Split) -> RunData:
    """A simulated run as it comes out of a float32 archive."""
    lumisection = np.arange(1, len(run.counts) + 1)
    maps = Maps(run.counts.astype(np.float32)[:, None], run.events, run.pileup, lumisection)
    return RunData(run.run, maps, split.assign(lumisection))


def learnt_lines(cell: Cell, simulated: Sequence[SimulatedRun], split: Split) -> tuple[list[HistoryLine], Scores | None]:
    """Learn the runs one after another and judge the strategy after each: the lines, and what the last evaluation said."""
    if cell.strategy in GRADIENT:
        set_threads(1)
    strategy = make_strategy(
        cell.strategy,
        geometry=Geometry(1),
        seed=cell.seed,
        recipe=recipe_of(cell.strategy, json.loads(cell.recipe)) if cell.recipe else None,
        memory_bytes=cell.memory_bytes,
        device="cpu",
    )
    evaluator, novelty = Evaluator(cell.evaluation_samples), Novelty(Geometry(1), cell.seed)
    lines, scores = [], None
    for number, run in enumerate(simulated):
        line, scores = learn_and_judge(
            strategy, {}, evaluator, novelty, number, as_run_data(run, split), lambda past: as_run_data(simulated[past], split)
        )
        lines.append(line)
    return lines, scores


def bound_lines(cell: Cell, simulated: Sequence[SimulatedRun], split: Split) -> tuple[list[HistoryLine], Scores]:
    """What a bound says after each run, on the lumisections that an `Evaluator` of the same budget keeps at the end.

    Its scores of a run do not depend on the others, so one table serves all rows.
    """
    evaluator = Evaluator(cell.evaluation_samples)
    for run in simulated:
        evaluator.add(as_run_data(run, split))
    all_runs = evaluator.score(_Bound(cell.strategy, [RunTruth.of(run) for run in simulated]))
    lines: list[HistoryLine] = []
    for number, run in enumerate(simulated):
        seen = all_runs.labels <= number
        log_probability = log_softmax(all_runs.log_probability[seen, : number + 1], axis=1)
        row = evaluate_row(Scores(log_probability, all_runs.labels[seen], all_runs.lumisection[seen])) if number else None
        lines.append(HistoryLine(number, run.run, cell.strategy, **(asdict(row) if row else {})))
    return lines, all_runs


@dataclass(frozen=True)
class _Bound:
    """Scores lumisections of HE depth 1 by what is true of the runs."""

    name: str
    truths: list[RunTruth]

    def scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, 0][:, LIVE]
        if self.name == IDEAL:
            return ideal(counts, maps.n_events, maps.pileup, self.truths)
        return ideal_profiled(counts, self.truths)
