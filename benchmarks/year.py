"""A year of runs through a learner: accuracy and forgetting after 10, 30, 100, 300 and 1000 runs, and the cost of a run.

    python -m benchmarks.year [--runs 1000] [--strategy NAME ...] [--memory-bytes N] [--out year-out] [--figure docs/year.png]

Runs of the stream `year` are drawn one at a time and go through the code of the live learner (`learners.stream.experience`);
an archive of the year would take 15 GB. The history and a checkpoint every 25 runs are written to --out, and a second call
continues from them. Progress goes to stderr, one JSON object to stdout and to <out>/year.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.learner import RECIPE, resident_mb
from dqmstream import __version__
from dqmstream.experiments.figures import canvas
from dqmstream.experiments.provenance import versions
from dqmstream.experiments.simulator import simulated_run
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import History, figures
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.json_lines import append_line, keep_lines, read_lines
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import GRADIENT, NAMES, make_strategy
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Split
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry
from dqmstream.storage.locks import write_atomically

STRATEGIES = ("statistical", "hybrid", "replay")
MILESTONES = (10, 30, 100, 300, 1000)
SEED, LUMISECTIONS = 100, 200
MEMORY_BYTES = 1_000_000

EVALUATION_SAMPLES = 1000
"""Test lumisections of an evaluation, one a run at the end; from the 34th run on an evaluation costs the same."""

COSTS = "costs.jsonl"
"""File beside history.jsonl with CPU seconds and resident memory of each run."""

BLOCK = 25
"""Runs between two checkpoints, and runs over which the median cost is given."""

KEPT = ("rows", "exemplars_most", "exemplars_fewest", "runs_without_exemplars")
"""Notes of a history line about the contents of the memory."""


def drawn(number: int) -> RunData:
    """Draw experience `number` of the year."""
    return as_run_data(simulated_run("year", number, seed=SEED, lumisections=LUMISECTIONS), Split())


def learnt(name: str, runs: int, memory_bytes: int, folder: Path) -> History:
    """Learn so many runs and return the history; runs that the folder has a checkpoint of are not learnt again."""
    if name in GRADIENT:
        set_threads(1)
    strategy = make_strategy(
        name,
        geometry=Geometry(1),
        seed=SEED,
        recipe=RECIPE if name in GRADIENT else None,
        memory_bytes=memory_bytes,
        device="cpu",
    )
    state = LearnerState(strategy, {}, Novelty(Geometry(1), SEED), Evaluator(EVALUATION_SAMPLES))
    folder.mkdir(parents=True, exist_ok=True)
    history, begun = History(folder / "history.jsonl"), 0
    if found := checkpoint.load_newest(folder / "checkpoints"):
        meta, arrays = found
        strategy.restore(within(arrays, "strategy"))
        state.novelty.restore(within(arrays, "novelty"))
        begun = meta.experience + 1
        for number in range(begun):
            state.evaluator.add(drawn(number))
    history.cut(begun)
    if begun and not (folder / COSTS).exists():
        raise SystemExit(f"{folder} was written by an older version, which kept no {COSTS}: remove it, or give another --out")
    keep_lines(folder / COSTS, begun)
    for number in range(begun, runs):
        run = drawn(number)
        cpu_s = time.process_time()
        line, _ = learn_and_evaluate(state, number, run, drawn)
        cost = {"cpu_s": round(time.process_time() - cpu_s, 4), "resident_mb": round(resident_mb(), 1)}
        append_line(folder / COSTS, cost)
        history.append(line)
        if (number + 1) % BLOCK == 0 or number + 1 == runs:
            meta = checkpoint.CheckpointMeta(
                experience=number, runs=state.evaluator.runs, strategy=name, seed=SEED, memory_bytes=memory_bytes,
                archive_id="", snapshot="", threads=1, dqmstream=__version__,
            )  # fmt: skip
            arrays = prefixed("strategy", strategy.state()) | prefixed("novelty", state.novelty.state())
            checkpoint.save(folder / "checkpoints", meta, arrays)
            accuracy = np.mean(line.accuracy) if line.accuracy else float("nan")
            print(f"{name}: {number + 1} runs, accuracy {accuracy:.3f}, {cost}", file=sys.stderr, flush=True)
    return history


def summary(lines: list[HistoryLine], costs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures at the milestones of the year, and the cost of its runs."""
    reached = [runs for runs in MILESTONES if runs <= len(lines)]
    milestones, since = [], 0
    for runs in reached:
        said = figures(lines[:runs])
        noticed = [line.before.new_run_auc for line in lines[since:runs] if line.before]
        milestones.append(
            {
                "runs": runs,
                "guessing": 1 / runs,
                "accuracy": said["average_accuracy"],
                "last_ten": float(np.mean((lines[runs - 1].accuracy or [])[-10:])),
                "auc": said["average_auc"],
                "forgetting": said["forgetting"],
                "new_run_auc_since": float(np.mean(noticed)),
                "memory_bytes": lines[runs - 1].memory_bytes,
                **{name: lines[runs - 1].notes[name] for name in KEPT if name in lines[runs - 1].notes},
            }
        )
        since = runs
    blocks = [range(start, min(start + BLOCK, len(lines))) for start in range(0, len(lines), BLOCK)]
    return {
        "milestones": milestones,
        "accuracy": [None if line.accuracy is None else round(float(np.mean(line.accuracy)), 4) for line in lines],
        "cost": [
            {
                "runs": block[-1] + 1,
                **{name: round(median(costs[i][name] for i in block), 4) for name in ("cpu_s", "resident_mb")},
            }
            for block in blocks
        ],
    }


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Draw accuracy over all known runs, CPU seconds and resident memory against the number of runs learnt."""
    with canvas(path, 8.0) as figure:
        accuracy, cpu, memory = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        most = max(len(of["accuracy"]) for of in found.values())
        runs = np.arange(2, most + 1)
        accuracy.plot(runs, 1 / runs, ":", color="black", label="guessing")
        for (name, of), style in zip(found.items(), cycle(("-", "--", "-.")), strict=False):
            # Curves of strategies may coincide: broken lines let the ones below show through.
            accuracy.plot(np.arange(2, len(of["accuracy"]) + 1), of["accuracy"][1:], style, label=name)
            at = [block["runs"] for block in of["cost"]]
            cpu.plot(at, [block["cpu_s"] for block in of["cost"]])
            memory.plot(at, [block["resident_mb"] / 1000 for block in of["cost"]])
        accuracy.set_ylim(0, 1.03)
        accuracy.set_ylabel("accuracy, all runs known")
        cpu.set_ylabel("CPU s a run")
        memory.set_ylabel("resident GB")
        memory.set_xlabel("runs learnt")
        memory.set_xscale("log")
        for axes in (cpu, memory):
            axes.set_ylim(bottom=0)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=MILESTONES[-1])
    parser.add_argument("--strategy", action="append", choices=NAMES)
    parser.add_argument(
        "--memory-bytes", type=int, default=MEMORY_BYTES, help="memory of past runs; one --out holds results for one size"
    )
    parser.add_argument("--out", type=Path, default=Path("year-out"))
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    if asked.runs < MILESTONES[0]:
        parser.error(f"--runs must be at least {MILESTONES[0]}, the first milestone")
    names = asked.strategy or STRATEGIES
    with threadpool_limits(1):
        found = {
            name: summary(
                learnt(name, asked.runs, asked.memory_bytes, asked.out / name).lines, read_lines(asked.out / name / COSTS)
            )
            for name in names
        }
    if asked.figure:
        draw(asked.figure, found)
    told = (
        {"stream": "year", "seed": SEED, "lumisections": LUMISECTIONS, "memory_bytes": asked.memory_bytes} | found | versions()
    )
    write_atomically(asked.out / "year.json", json.dumps(told).encode())
    print(json.dumps(told))


if __name__ == "__main__":
    main()
