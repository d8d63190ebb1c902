"""What a run costs a learner as the stream grows: CPU seconds and memory around an early and a late run, as ratios.

    python -m benchmarks.learner [--runs 200] [--strategy NAME ...]

Prints one JSON object, the last line of stdout. Ten simulated runs come again and again under new numbers, since what a run
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

from dqmstream.experiments.cells import as_run_data
from dqmstream.experiments.simulator import stream
from dqmstream.learners.evaluation import Evaluator
from dqmstream.learners.judge import learn_and_judge
from dqmstream.learners.novelty import Novelty
from dqmstream.learners.recipe import Recipe
from dqmstream.learners.registry import GRADIENT, make_strategy
from dqmstream.learners.splits import Split
from dqmstream.learners.strategy import RunData
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


def measured(name: str, drawn: list[RunData], runs: int) -> dict[str, Any]:
    """One strategy over so many runs, without baselines."""
    recipe = RECIPE if name in GRADIENT else None
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=MEMORY_BYTES, device="cpu")
    evaluator, novelty = Evaluator(EVALUATION_SAMPLES), Novelty(Geometry(1), 0)
    learn, whole, resident = [], [], []
    for number in range(runs):
        run = replace(drawn[number % len(drawn)], run=number + 1)
        began = time.process_time()
        line, _ = learn_and_judge(strategy, {}, evaluator, novelty, number, run, lambda i: drawn[i % len(drawn)])
        whole.append(time.process_time() - began)
        learn.append(line["seconds"]["learn"])
        resident.append(resident_mb())
    early, late = slice(EARLY - AROUND, EARLY + AROUND), slice(runs - 2 * AROUND, runs)
    return {
        "cpu_s_early": round(statistics.median(whole[early]), 4),
        "cpu_s_late": round(statistics.median(whole[late]), 4),
        "ratio": round(statistics.median(whole[late]) / statistics.median(whole[early]), 3),
        "ratio_learn": round(statistics.median(learn[late]) / statistics.median(learn[early]), 3),
        "resident_mb_early": round(statistics.median(resident[early]), 1),
        "resident_mb_late": round(statistics.median(resident[late]), 1),
        "memory_bytes": strategy.memory_bytes(),
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
