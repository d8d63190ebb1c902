"""A cell of a benchmark: one strategy over one simulated stream, evaluated after each run.

It uses the same code as the live learner (`learners.stream.experience`), with runs from the simulator in place of the archive.
The record of a bound has the same kind of lines, without learning.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark.bounds import BOUNDS, IDEAL, ideal, ideal_profiled
from dqmstream.experiments.benchmark.run_likelihood import RunTruth
from dqmstream.experiments.cells.cell import Record, SettingsCell, one_thread
from dqmstream.experiments.provenance import made_by
from dqmstream.experiments.simulator import LIVE, SimulatedRun, stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.experiments.statistics import effective_count
from dqmstream.learners.evaluation.by_last import figures_by_last, sums_of_last
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history_line import LENGTHS, HistoryLine
from dqmstream.learners.evaluation.matrix_row import Scores, evaluate_row
from dqmstream.learners.learnable import why_left_out
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import make_strategy, recipe_of, strategy_info
from dqmstream.learners.splits import Split
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry

_SOURCES = (
    "experiments/statistics.py",
    "experiments/benchmark/bounds.py",
    "experiments/benchmark/run_likelihood.py",
    "experiments/benchmark/cell.py",
)
"""What the figures depend on besides learners and simulator. Code that reads finished cells is left out."""


@dataclass(frozen=True)
class BenchmarkCell(SettingsCell):
    """A strategy on a stream. Its figures depend on these fields, on the code and on the versions of the libraries.

    order: 0 for the runs as drawn, else the number of a permutation; the first run of the order is the reference. split, fold:
    of `learners.splits.Split`. The seed is that of the stream and of the strategy. recipe: changes to the strategy's recipe,
    as JSON with sorted names, "" for none.
    """

    sources: ClassVar[tuple[str, ...]] = _SOURCES

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
        """Stream, seed, order and strategy, and a digest of all fields."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.stream}-{self.seed}-{self.order}-{self.strategy}-{digest}"

    def compute(self) -> Record:
        """Compute the record on one thread. Raises InputError for an unknown strategy.

        "lines": history lines, one per run that is learnt. "worth": the number of independent lumisections that the test
        lumisections of the last evaluation are worth (`statistics.effective_count`). "worth_by_last": the same where their last
        n lumisections name the run, by n as text; without entries where not all neighbours were evaluated. "left_out": why, by
        run.
        """
        with one_thread():
            began = time.perf_counter()
            simulated = ordered(
                list(stream(self.stream, seed=self.seed, runs=self.runs, lumisections=self.lumisections)), self.seed, self.order
            )
            split = Split(self.split, seed=self.seed, fold=self.fold)
            simulated, left_out = learnable(simulated, split)
            evaluate = bound_lines if self.strategy in BOUNDS else learnt_lines
            lines, scores = evaluate(self, simulated, split)
        worth = None
        if scores is not None:
            worth = effective_count(scores.log_probability.argmax(axis=1), scores.labels, scores.lumisection)
        by_last = {}
        if scores is not None and lines[-1].by_last and lines[-1].by_last[0].experiences is None:
            for n, sums in zip(LENGTHS, sums_of_last(scores), strict=True):
                by_last[str(n)] = effective_count(sums.total.argmax(axis=1), sums.labels, sums.lumisection)
        return {
            "cell": asdict(self),
            "lines": [line.to_json() for line in lines],
            "worth": worth,
            "worth_by_last": by_last,
            "left_out": {str(run): why for run, why in left_out.items()},
            "seconds": round(time.perf_counter() - began, 3),
            **made_by(*_SOURCES),
        }


def ordered(runs: list[SimulatedRun], seed: int, order: int) -> list[SimulatedRun]:
    """The runs in the given order: 0 as drawn, else a permutation given by seed and order."""
    return runs if order == 0 else [runs[i] for i in np.random.default_rng([seed, order]).permutation(len(runs))]


def learnable(runs: Sequence[SimulatedRun], split: Split) -> tuple[list[SimulatedRun], dict[int, str]]:
    """The runs that a learner can learn, the same for every strategy and bound; and why the others are left out, by run.

    Raises InputError if fewer than two can be learnt.
    """
    kept: list[SimulatedRun] = []
    left_out: dict[int, str] = {}
    for run in runs:
        if why := why_left_out(as_run_data(run, split), as_reference=not kept):
            left_out[run.run] = why
        else:
            kept.append(run)
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} of {len(runs)} runs can be learnt, and two are needed; run {min(left_out)} is left out, since it is "
            f"{left_out[min(left_out)]}: ask for more or longer runs"
        )
    return kept, left_out


def learnt_lines(
    cell: BenchmarkCell, simulated: Sequence[SimulatedRun], split: Split
) -> tuple[list[HistoryLine], Scores | None]:
    """Learn the runs one after another and evaluate after each: history lines, and the scores of the last evaluation."""
    if strategy_info(cell.strategy).recipe is not None:
        set_threads(1)
    strategy = make_strategy(
        cell.strategy,
        geometry=Geometry(1),
        seed=cell.seed,
        recipe=recipe_of(cell.strategy, json.loads(cell.recipe)) if cell.recipe else None,
        memory_bytes=cell.memory_bytes,
        device="cpu",
    )
    state = LearnerState(strategy, {}, Novelty(Geometry(1), cell.seed), Evaluator(cell.evaluation_samples))
    lines, scores = [], None
    for number, run in enumerate(simulated):
        line, scores = learn_and_evaluate(
            state, number, as_run_data(run, split), lambda past: as_run_data(simulated[past], split)
        )
        lines.append(line)
    return lines, scores


def bound_lines(cell: BenchmarkCell, simulated: Sequence[SimulatedRun], split: Split) -> tuple[list[HistoryLine], Scores]:
    """History lines of a bound, on the lumisections that an `Evaluator` of the same budget keeps at the end.

    A bound's score of a run does not depend on the other runs, so one evaluation gives the lines of all.
    """
    evaluator = Evaluator(cell.evaluation_samples)
    for run in simulated:
        evaluator.add(as_run_data(run, split))
    bound = _Bound(cell.strategy, [RunTruth.of(run) for run in simulated])
    all_runs = evaluator.score(bound)
    blocks = evaluator.score_blocks(bound, all_runs)
    lines: list[HistoryLine] = []
    for number, run in enumerate(simulated):
        row: dict[str, Any] = asdict(evaluate_row(_first(all_runs, number + 1))) if number else {}
        if number and blocks is not None:
            row["by_last"] = figures_by_last(_first(blocks, number + 1), np.arange(number + 1))
        lines.append(HistoryLine(number, run.run, cell.strategy, **row))
    return lines, all_runs


def _first(scores: Scores, runs: int) -> Scores:
    """The scores of the lumisections of the first runs among these runs."""
    seen = scores.labels < runs
    log_probability = log_softmax(scores.log_probability[seen, :runs], axis=1)
    return Scores(log_probability, scores.labels[seen], scores.lumisection[seen])


_IMPOSSIBLE = -1e300
"""Score of a run that cannot have counted so. Unlike -inf, it can be summed, and subtracted from another one."""


@dataclass(frozen=True)
class _Bound:
    """Scores lumisections of HE depth 1 by the true parameters of the runs."""

    name: str
    truths: list[RunTruth]

    def scores(self, maps: Maps) -> np.ndarray:
        counts = maps.counts[:, 0][:, LIVE]
        known = self.name == IDEAL
        scores = ideal(counts, maps.n_events, maps.pileup, self.truths) if known else ideal_profiled(counts, self.truths)
        return np.maximum(scores, _IMPOSSIBLE)
