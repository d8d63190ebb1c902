"""What a run costs a learner as the stream grows: CPU seconds and memory around an early and a late run, as ratios.

    python -m benchmarks.learner [--runs 200] [--strategy NAME ...]

Prints one JSON object, the last line of stdout. A second learner is taken to the early run once the first one is near the late
one, and they go on in turn. Ten simulated runs come again and again under new numbers, since what a run
costs does not depend on what is in it. The budget of the evaluation is full before the early run is reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import GRADIENT, make_strategy
from dqmstream.learners.splits import Split
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.lumisection import Geometry

STRATEGIES = ("statistical", "replay", "hybrid")
RECIPE = Recipe(dim=16, depth=2, heads=2, experts=4, steps=20, batch=32)
EARLY, AROUND = 20, 5
"""The early run, and how many runs before and after it, and before the last, are measured beside."""

EVALUATION_SAMPLES = 300
MEMORY_BYTES = 200_000
DISTINCT, LUMISECTIONS = 10, 200


def resident_mb() -> float:
    """Memory of this process that is in use now, in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Course:
    """A strategy on its way over the stream, without baselines."""

    def __init__(self, name: str, drawn: list[RunData]) -> None:
        recipe = RECIPE if name in GRADIENT else None
        self.strategy = make_strategy(
            name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=MEMORY_BYTES, device="cpu"
        )
        self.runs = 0
        self.resident_mb: list[float] = []
        self._drawn = drawn
        self._state = LearnerState(self.strategy, {}, Novelty(Geometry(1), 0), Evaluator(EVALUATION_SAMPLES))

    def go(self, runs: int) -> None:
        """On to so many runs learnt."""
        while self.runs < runs:
            self.step()

    def step(self) -> tuple[float, float]:
        """Learn and judge the next run: CPU seconds of both, and seconds of learning."""
        run = replace(self._drawn[self.runs % len(self._drawn)], run=self.runs + 1)
        began = time.process_time()
        line, _ = learn_and_evaluate(self._state, self.runs, run, self._past)
        spent = time.process_time() - began
        self.runs += 1
        self.resident_mb.append(resident_mb())
        return spent, line.seconds["learn"]

    def _past(self, number: int) -> RunData:
        return self._drawn[number % len(self._drawn)]


def measured(name: str, drawn: list[RunData], runs: int) -> dict[str, Any]:
    """One strategy over so many runs."""
    late = Course(name, drawn)
    late.go(runs - 2 * AROUND)
    resident = {"early": late.resident_mb[EARLY - AROUND : EARLY + AROUND], "late": late.resident_mb[-2 * AROUND :]}
    early = Course(name, drawn)
    early.go(EARLY - AROUND)
    # In turn, since how fast a machine is depends on what else it does.
    cost = np.array([(*early.step(), *late.step()) for _ in range(2 * AROUND)])
    early_s, early_learn_s, late_s, late_learn_s = np.median(cost, axis=0)
    return {
        "cpu_s_early": round(early_s, 4),
        "cpu_s_late": round(late_s, 4),
        "ratio": round(late_s / early_s, 3),
        "ratio_learn": round(late_learn_s / early_learn_s, 3),
        **{f"resident_mb_{when}": round(statistics.median(sizes), 1) for when, sizes in resident.items()},
        "memory_bytes": late.strategy.memory_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES)
    asked = parser.parse_args()
    if asked.runs < EARLY + 3 * AROUND:
        parser.error(f"--runs must be {EARLY + 3 * AROUND} at least, so that early and late runs are others")
    runs = stream("small", seed=0, runs=DISTINCT, lumisections=LUMISECTIONS)
    drawn = [as_run_data(run, Split()) for run in runs]
    found = {name: measured(name, drawn, asked.runs) for name in asked.strategy or STRATEGIES}
    print(json.dumps({"runs": asked.runs, "early": EARLY, **found}))


if __name__ == "__main__":
    main()
