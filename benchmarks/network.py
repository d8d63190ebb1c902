"""What a network adds to the closed forms, idea by idea: accuracy alone, and log-likelihood gained by a pool that holds it.

    python -m benchmarks.network [--streams patterns mixture] [--seeds 0 1] [--ideas base experts] [--set steps=64 ...]

For each stream the closed forms of `stacked` and a network, taught by replay (`--strategy`), learn the same runs one after
another. Weights of a log-linear pool, with the network and without, are fitted to the validation lumisections of all runs, and
both pools are compared on the test lumisections. Positive gains are nats a lumisection that are due to the network. An idea is
a change of the recipe (`IDEAS`); `--set` changes the recipe of every one. Prints a line for each idea and stream, and one JSON
array as the last line of stdout. The closed forms of a stream
of 8 runs take ten seconds, a training of the base .3 s a run, of a transformer 1.3 s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from dqmstream.experiments.simulator.learner_input import simulate_runs
from dqmstream.experiments.statistics import paired_difference
from dqmstream.learners.closed_form.pool import usual_weights
from dqmstream.learners.closed_form.pool_weights import fit_weights
from dqmstream.learners.closed_form.stacked import Stacked
from dqmstream.learners.gradient.strategy import DeepStrategy
from dqmstream.learners.maps import Maps, RunData, joined
from dqmstream.learners.networks.recipe import QUADRATIC_RECIPE, Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from dqmstream.settings import recipe_flags

VIT: dict[str, Any] = {"model": "vit", "depth": 1, "patch": [32, 4], "patch_shift": 2, "lr": 1e-3, "linear_skip": True}
EXPERTS = {**VIT, "model": "moe_vit", "moe_blocks": [0]}

IDEAS: dict[str, dict[str, Any]] = {
    "base": {},
    "shipped": Recipe().changes_from(QUADRATIC_RECIPE),
    "noise 0": {"noise": 0.0},
    "noise .5": {"noise": 0.5},
    "unpacked": {"packed": False},
    "16 products": {"products": 16},
    "192 products": {"products": 192},
    "four members": {"model": "ensemble:quadratic+quadratic+quadratic+quadratic"},
    "steps x 4": {"steps": 256},
    "probe": {"steps": 8},
    "means too": {"model": "linear"},
    "means alone": {"model": "linear", "products": 0},
    "transformer": VIT,
    "experts": EXPERTS,
    "soft experts": {**EXPERTS, "router": "soft"},
    "transformer without products": {**VIT, "products": 0},
    "experts without products": {**EXPERTS, "products": 0},
    "cnn": {"model": "cnn", "lr": 1e-3, "linear_skip": True},
    "resnet": {"model": "resnet", "lr": 1e-3},
}
"""Changes of `QUADRATIC_RECIPE`. A transformer and its mixture of experts have the same active operations."""


class Judged:
    """The closed forms of one stream, which every network is compared beside."""

    def __init__(self, stream: str, seed: int, runs: int, lumisections: int) -> None:
        self.runs = [run for run in simulate_runs(stream, seed=seed, runs=runs, lumisections=lumisections) if _whole(run)]
        closed = Stacked(Geometry(1), 0, 1_000_000)
        for i, run in enumerate(self.runs):
            closed.learn(i, run, self.runs.__getitem__)
        self.live = closed.reference.live
        self.names = tuple(closed.pool.parts)
        self.maps, self.label, self.scores = {}, {}, {}
        for part in (Part.VALIDATION, Part.TEST):
            of_runs = [run.part(part) for run in self.runs]
            self.maps[part] = joined(of_runs)
            self.label[part] = np.repeat(np.arange(len(of_runs)), [len(maps) for maps in of_runs])
            self.scores[part] = closed.pool.log_probabilities(self.maps[part].counts[:, self.live])

    def pooled(self, network: Mapping[Part, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the test lumisections by the pool, (n, classes), and the pool's weights."""
        scores, names = self.scores, self.names
        if network is not None:
            names = (*names, "network")
            scores = {part: np.concatenate([scores[part], network[part][None]]) for part in scores}
        usual = usual_weights(names).weights
        weights = fit_weights(names, scores[Part.VALIDATION], self.label[Part.VALIDATION], usual).weights
        return np.asarray(log_softmax(np.tensordot(weights, scores[Part.TEST], 1), axis=1)), weights

    def by_run(self, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and log-likelihood of each run: (runs,) each."""
        label = self.label[Part.TEST]
        hits, right = log_p.argmax(axis=1) == label, log_p[np.arange(len(label)), label]
        size = np.bincount(label)
        return np.bincount(label, hits) / size, np.bincount(label, right) / size


def _whole(run: RunData) -> bool:
    return all(len(run.part(part)) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST))


def taught(strategy: str, recipe: Recipe, memory_bytes: int, seed: int, runs: Sequence[RunData]) -> DeepStrategy:
    """A network that has learnt the runs."""
    learner = make_strategy(
        strategy, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=memory_bytes, device="cpu"
    )
    if not isinstance(learner, DeepStrategy):
        raise SystemExit(f"{strategy} trains no network: choose a gradient strategy")
    for i, run in enumerate(runs):
        learner.learn(i, run, runs.__getitem__)
    return learner


def measure(stream: str, judged: Sequence[Judged], idea: str, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of an idea on a stream, over all seeds."""
    rows: dict[str, list[np.ndarray]] = {"alone": [], "closed": [], "pool": [], "closed_ll": [], "pool_ll": []}
    weights, seconds = [], []
    for seed, one in zip(options.seeds, judged, strict=True):
        began = time.process_time()
        learner = taught(options.strategy, recipe, options.memory_bytes, seed, one.runs)
        seconds.append((time.process_time() - began) / len(one.runs))
        network = {part: learner.network_scores(_counts(one.maps[part], one.live)) for part in one.maps}
        rows["alone"].append(one.by_run(network[Part.TEST])[0])
        for name, scores in (("closed", None), ("pool", network)):
            log_p, chosen = one.pooled(scores)
            accuracy, likelihood = one.by_run(log_p)
            rows[name].append(accuracy)
            rows[f"{name}_ll"].append(likelihood)
        weights.append(chosen[-1])
    ours, theirs = (
        {(seed, 0): dict(enumerate(of_run)) for seed, of_run in zip(options.seeds, rows[name], strict=True)}
        for name in ("pool_ll", "closed_ll")
    )
    gain = paired_difference(ours, theirs).interval
    return {
        "stream": stream, "idea": idea, "seeds": options.seeds, "strategy": options.strategy, "steps": recipe.steps,
        **{name: round(float(np.mean(np.concatenate(rows[name]))), 4) for name in rows},
        "gain": [round(float(value), 4) for value in (gain.estimate, gain.low, gain.high)],
        "weight": [round(float(weight), 3) for weight in weights],
        "s_a_run": round(float(np.mean(seconds)), 2),
    }  # fmt: skip


def _counts(maps: Maps, live: np.ndarray) -> np.ndarray:
    return maps.counts[:, live]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", nargs="+", default=["patterns", "transient", "mixture"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--ideas", nargs="+", default=list(IDEAS), choices=list(IDEAS), metavar="IDEA")
    parser.add_argument("--set", nargs="+", default=[], dest="changes", metavar="ENTRY=VALUE", help="changes of every recipe")
    parser.add_argument("--strategy", default="replay")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--lumisections", type=int, default=400)
    parser.add_argument("--memory-bytes", type=int, default=400_000, help="of the network; the closed forms have 1 MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = recipe_flags(None, options.changes) or {}
    lines = []
    for stream in options.streams:
        judged = [Judged(stream, seed, options.runs, options.lumisections) for seed in options.seeds]
        for idea in options.ideas:
            recipe = QUADRATIC_RECIPE.changed({**IDEAS[idea], **own})
            line = measure(stream, judged, idea, recipe, options)
            print(
                f"{stream:14} {idea:28} alone {line['alone']:.3f}  closed {line['closed']:.3f} -> {line['pool']:.3f}  "
                f"gain {line['gain'][0]:+.4f} [{line['gain'][1]:+.4f}, {line['gain'][2]:+.4f}]  {line['s_a_run']:.2f} s a run",
                flush=True,
            )
            lines.append(line)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
