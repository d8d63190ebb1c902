"""The optimism of a random split on interpolated lumisections: it tells runs apart that do not differ.

    python -m benchmarks.splits

Runs of the stream `null`, 501 lumisections each, are interpolated to 10000 rows, as the published files seem to be. Accuracy
above chance then comes from neighbouring rows, not from the detector. Splits: random; blocks for rows that are lumisections
(cycles of 200 rows, here 10 lumisections); blocks 25 times as long, as for files marked interpolated. Classifiers: two ring
means (luminosity alone), the nearest training row (Euclidean, raw counts), the gain map.

Prints a line for each pair of these, then one JSON object, the last line of stdout: accuracy over 2 and over 8 runs, mean and
standard deviation over streams of different seeds. It takes 4 to 7 minutes and 2 GB of memory on one thread. Results are in
docs/decisions/2026-11-29-splits.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from dqmstream.experiments.simulator import LIVE, SimulatedRun, interpolate, stream
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.ring_means import RingMeans
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import INTERPOLATED_SCALE, Part, Split
from dqmstream.lumisection import Geometry

LUMISECTIONS, ROWS = 501, 10_000
RUNS = 8
TESTED_ROWS = 300
"""Test rows that are classified, a run, evenly spread over its test part."""

SPLITS: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {
    "random": lambda seed, rows: Split("random", seed=seed).assign(rows),
    "blocks x1": lambda seed, rows: Split("blocks").assign(rows),
    "blocks x25": lambda seed, rows: Split("blocks").assign(rows, INTERPOLATED_SCALE),
}
CLASSIFIERS = ("ring_means", "nearest", "gain_map")


class Judged:
    """The classifiers on one stream with one split; they learn run after run, and keep a few test rows of each."""

    def __init__(self, seed: int, split: str) -> None:
        self._seed, self._assign = seed, SPLITS[split]
        self._streaming = {made.name: made for made in (RingMeans(Geometry(1), seed), GainMap(Geometry(1), seed))}
        self._rows: list[np.ndarray] = []
        self._tests: list[Maps] = []

    def add(self, number: int, run: int, maps: Maps) -> None:
        """Learn a run. maps: its rows."""
        data = RunData(run, maps, self._assign(self._seed, maps.lumisection))
        for strategy in self._streaming.values():
            strategy.learn(number, data, _no_past)
        self._rows.append(data.part(Part.TRAIN).counts[:, 0, LIVE])
        test = data.part(Part.TEST)
        self._tests.append(test.take(np.linspace(0, len(test) - 1, TESTED_ROWS).astype(np.int64)))

    def accuracies(self) -> dict[str, tuple[float, float]]:
        """Accuracy of each classifier, over the first two runs and over all."""
        scores = {name: [made.scores(test) for test in self._tests] for name, made in self._streaming.items()}
        scores["nearest"] = [nearest(test.counts[:, 0, LIVE], self._rows) for test in self._tests]
        return {name: (accuracy(scores[name], 2), accuracy(scores[name], len(self._tests))) for name in CLASSIFIERS}


def _no_past(number: int) -> RunData:
    raise LookupError(f"no classifier here reads run {number} again")


def nearest(tests: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Minus the squared distance of each test row (n, live) to the nearest training row of each run: (n, runs)."""
    scores = np.empty((len(tests), len(rows)))
    for k, known in enumerate(rows):
        squares = np.square(known, dtype=np.float64).sum(axis=1)
        scores[:, k] = (2 * tests.astype(np.float64) @ known.T.astype(np.float64) - squares).max(axis=1)
    return scores


def accuracy(scores: list[np.ndarray], runs: int) -> float:
    """Share of the rows of the first `runs` runs that are classified right, among these runs."""
    return float(np.mean([np.mean(of_run[:, :runs].argmax(axis=1) == i) for i, of_run in enumerate(scores[:runs])]))


def rows_of(run: SimulatedRun) -> Maps:
    """A run's interpolated lumisections, numbered by row."""
    rows = np.arange(1, ROWS + 1)
    counts = interpolate(run.counts, ROWS).astype(np.float32)[:, None]
    return Maps(counts, interpolate(run.events, ROWS), interpolate(run.pileup, ROWS), rows)


def measure(seed: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Accuracies on the stream of that seed, by split and classifier."""
    judged = {split: Judged(seed, split) for split in SPLITS}
    for number, run in enumerate(stream("null", seed=seed, runs=RUNS, lumisections=LUMISECTIONS)):
        maps = rows_of(run)
        for one in judged.values():
            one.add(number, run.run, maps)
    return {split: one.accuracies() for split, one in judged.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("a deviation needs two seeds at least")
    seed_use(options.seeds)
    found = [measure(seed) for seed in options.seeds]
    table: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        table[split] = {}
        for name in CLASSIFIERS:
            values = np.array([one[split][name] for one in found])
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
            table[split][name] = {
                f"{runs} runs": {"mean": round(float(m), 4), "deviation": round(float(s), 4)}
                for runs, m, s in zip((2, RUNS), mean, spread, strict=True)
            }
            words = [f"{m:.3f} ± {s:.3f} (chance {1 / runs:.3f})" for runs, m, s in zip((2, RUNS), mean, spread, strict=True)]
            print(f"{split:10} {name:10} 2 runs {words[0]}   {RUNS} runs {words[1]}", flush=True)
    print(json.dumps({"seeds": options.seeds, "accuracy": table}))


if __name__ == "__main__":
    main()
