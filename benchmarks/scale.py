"""What maps divided by their events cost a learner, and whether multiplying them back restores it.

    python -m benchmarks.scale

Runs of a stream are written as files three times over: as counts, divided by the events of each lumisection with the events
beside, and the latter once more. Counts and shares are imported and replayed from their archives, as a user would; the third
time shares are learnt as they are, as versions did that filed them.

Prints a line for each strategy and way, then one JSON object, the last line of stdout: accuracy over all runs after the last,
mean and standard error over seeds, and how far shares times events were from whole counts at most. It takes a few minutes.
Results are in docs/decisions/2026-11-29-scale-of-maps.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part, Split
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.replay import replay
from dqmstream.lumisection import Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.import_data import ImportOptions, import_data

RUNS, LUMISECTIONS = 8, 400
STRATEGIES = ("gain_map", "statistical")
WAYS = ("counts", "shares, multiplied back", "shares as they are")


def measure(name: str, seed: int, folder: Path) -> tuple[dict[tuple[str, str], float], float]:
    """Accuracy by strategy and way, and the largest distance of a product from a whole number."""
    runs = list(stream(name, seed=seed, runs=RUNS, lumisections=LUMISECTIONS))
    found: dict[tuple[str, str], float] = {}
    off = 0.0
    for way in WAYS[:2]:
        files = folder / way.split(",")[0]
        files.mkdir()
        for run in runs:
            by = run.events[:, None, None] if way != "counts" else 1.0
            np.save(files / f"Run{run.run}_Dataset_{name}.npy", (run.counts / by).astype(np.float32))
            np.save(files / f"Run{run.run}_events.npy", run.events)
        archive = folder / f"{files.name}.archive"
        done = import_data(archive, [files], ImportOptions())
        off = max([off, *(file["off_whole"] or 0.0 for file in done["files"])])
        for strategy in STRATEGIES:
            settings = LearnerSettings(strategy=strategy, seed=seed)
            found[strategy, way] = replay(Archive.open(archive), folder / "state" / files.name, settings)["average_accuracy"]
    shares = []
    for run in runs:
        data = as_run_data(run, Split())
        counts = (data.maps.counts / run.events[:, None, None, None]).astype(np.float32)
        shares.append(replace(data, maps=replace(data.maps, counts=counts)))
    for strategy in STRATEGIES:
        learner = make_strategy(strategy, geometry=Geometry(1), seed=seed)
        for number, run_of_shares in enumerate(shares):
            learner.learn(number, run_of_shares, shares.__getitem__)
        right = [np.mean(learner.scores(one.part(Part.TEST)).argmax(axis=1) == i) for i, one in enumerate(shares)]
        found[strategy, WAYS[2]] = float(np.mean(right))
    return found, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--stream", default="small")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("an error needs two seeds at least")
    seed_use(options.seeds)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    each = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            each.append(measure(options.stream, seed, Path(folder)))
    table: dict[str, dict[str, dict[str, float]]] = {}
    for strategy in STRATEGIES:
        table[strategy] = {}
        for way in WAYS:
            values = np.array([found[strategy, way] for found, _ in each])
            error = values.std(ddof=1) / np.sqrt(len(values))
            table[strategy][way] = {"mean": round(float(values.mean()), 4), "error": round(float(error), 4)}
            print(f"{options.stream} {strategy:12} {way:24} {values.mean():.3f} ± {error:.3f}", flush=True)
    print(json.dumps({"seeds": options.seeds, "accuracy": table, "off_whole": max(off for _, off in each)}))


if __name__ == "__main__":
    main()
