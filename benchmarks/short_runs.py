"""What is learnt of short runs: accuracy over runs of 20 to 150 lumisections, with the split that short runs have.

    python -m benchmarks.short_runs

The first run has 400 lumisections, since it is the reference; the seven after it are cut to so many consecutive ones from a
random place. On `null` nothing differs but luminosity, which does differ between such pieces: what is above chance (.125) there
is luminosity, or test lumisections that resemble their neighbours in training.

Prints a line for each stream, length and strategy, then one JSON object, the last line of stdout: accuracy over the test
lumisections of the seven runs, mean and standard error over seeds. It takes about a minute of CPU. Results are in
docs/decisions/2026-11-29-splits.md.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.learners.maps import RunData
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import Geometry

STREAMS = ("null", "moderate", "small")
LENGTHS = (20, 40, 65, 150)
STRATEGIES = ("ring_means", "gain_map", "naive_bayes", "statistical")
RUNS, WHOLE = 8, 400


def pieces(name: str, seed: int, length: int) -> list[RunData]:
    """The runs of a stream: the first whole, the others cut to a piece of this length."""
    rng = np.random.default_rng([seed, length])
    found = []
    for number, run in enumerate(stream(name, seed=seed, runs=RUNS, lumisections=WHOLE)):
        maps = as_maps(run)
        if number:
            start = int(rng.integers(WHOLE - length + 1))
            maps = maps.take(np.arange(start, start + length))
        found.append(RunData(run.run, maps, Split().assign_run(maps.lumisection - maps.lumisection[0] + 1)))
    return found


def accuracies(name: str, seed: int, length: int) -> dict[str, float]:
    """Accuracy of each strategy over the test lumisections of the short runs."""
    runs = pieces(name, seed, length)
    found = {}
    for of in STRATEGIES:
        strategy = make_strategy(of, geometry=Geometry(1), seed=seed)
        for number, run in enumerate(runs):
            strategy.learn(number, run, runs.__getitem__)
        right = [
            strategy.scores(run.part(Part.TEST)).argmax(axis=1) == number for number, run in enumerate(runs) if number
        ]
        found[of] = float(np.concatenate(right).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("an error needs two seeds at least")
    seed_use(options.seeds)
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name in STREAMS:
        table[name] = {}
        for length in LENGTHS:
            each = [accuracies(name, seed, length) for seed in options.seeds]
            table[name][str(length)] = {}
            for of in STRATEGIES:
                values = np.array([one[of] for one in each])
                error = values.std(ddof=1) / np.sqrt(len(values))
                table[name][str(length)][of] = {"mean": round(float(values.mean()), 4), "error": round(float(error), 4)}
                print(f"{name:9} {length:4} lumisections {of:12} {values.mean():.3f} ± {error:.3f}", flush=True)
    print(json.dumps({"seeds": options.seeds, "accuracy": table}))


if __name__ == "__main__":
    main()
