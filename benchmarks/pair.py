"""Cost of an AUC of .9999 on the two published runs: the default learner against the recipe of the second study.

    python -m benchmarks.pair [--only default | study] [--seed 0] [--minutes 60] [--device cuda [--micro-batch 250]]

Cost is CPU seconds per image times images needed, on one thread, until the AUC reaches .9999 on more than 1000 test
lumisections of each run of the stream `pair` (where luminosity tells the runs apart, as in the published runs). On a GPU it is
wall-clock time until the GPU has finished.

* study: ViT-B/16 on maps resized to 224 x 224, cross-entropy, Adam at 1e-4, batches of 250 in micro-batches (`STUDY_RECIPE` in
  `learners.networks.recipe`). Seconds per image are the median of the first three steps. It is evaluated after each step, on
  100 test lumisections of each run, and on all of them once these are without a mistake.
* default: what `dqmstream learn` does with two runs of 200 lumisections (100 to train on), with 1, 2, 4, ... training steps.
  Seconds are those of all learning, including reference, memories and closed form, the median of three.

Prints one JSON object as the last line of stdout; progress goes to stderr. The study takes up to an hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.recipe import STUDY_RECIPE
from dqmstream.learners.registry import DEFAULT, make_strategy, recipe_of
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part, Split
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry

TARGET_AUC = 0.9999
LUMISECTIONS = 6800
"""Of a run: 34 cycles of the split, with 3400 lumisections to train on and 1020 to test."""

DEFAULT_LUMISECTIONS = 200
"""Of a run for the default, which needs no more."""

QUICK_TEST = 100
"""Test lumisections of a run that the study is evaluated on until it makes no mistake there."""

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds: wall-clock time after all work of a GPU, or CPU time."""

    def on_gpu() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return on_gpu if device.type == "cuda" else time.process_time


def pair(seed: int, lumisections: int) -> list[RunData]:
    return [as_run_data(run, Split()) for run in stream("pair", seed=seed, lumisections=lumisections)]


def told_apart(scores: list[np.ndarray]) -> float:
    """AUC of the second run against the first, from log-scores (n, 2) of each."""
    first, second = (score[:, 1] - score[:, 0] for score in scores)
    return auc(second, first)


def default_cost(learnt: list[RunData], test: list[Maps], seed: int, device: torch.device) -> dict[str, Any]:
    """The fewest steps after which the default reaches the AUC, and their cost."""
    clock, tried = clock_of(device), {}
    if device.type == "cuda":
        default_taught(learnt, seed, device, 1)  # Loading and compiling in the first training of a process is not counted.
    for steps in STEPS:
        seconds = []
        for _ in range(3):
            began = clock()
            strategy, images = default_taught(learnt, seed, device, steps)
            seconds.append(clock() - began)
        tried[steps] = told_apart([strategy.scores(maps) for maps in test])
        print(f"{DEFAULT}, {steps} steps: {images} images, {seconds[-1]:.2f} s, AUC {tried[steps]:.6f}", file=sys.stderr)
        if tried[steps] >= TARGET_AUC:
            took = statistics.median(seconds)
            return {"steps": steps, "images": images, "s_an_image": took / images, "cost_s": took, "auc": tried}
    return {"cost_s": None, "auc": tried}


def default_taught(learnt: list[RunData], seed: int, device: torch.device, steps: int) -> tuple[Strategy, int]:
    """The default after learning both runs, and the number of images that it was trained on."""
    recipe = recipe_of(DEFAULT, {"steps": steps})
    strategy = make_strategy(DEFAULT, geometry=Geometry(1), seed=seed, recipe=recipe, device=str(device))
    logs = [strategy.learn(i, run, lambda past: learnt[past]) for i, run in enumerate(learnt)]
    return strategy, sum(log.samples for log in logs)


def drawn(images: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows of batches without end, shuffled anew in each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(images)
        yield from (order[start : start + batch] for start in range(0, images - batch + 1, batch))


def study_cost(
    runs: list[RunData], test: list[Maps], seed: int, minutes: float, device: torch.device, micro_batch: int
) -> dict[str, Any]:
    """Train as the study did until the AUC is reached or the time is up. Scaled counts are resized on the device."""
    clock = clock_of(device)
    torch.manual_seed(seed)
    reference = Reference.fit(runs[0].part(Part.TRAIN))
    model = build(reference.live, replace(STUDY_RECIPE, micro_batch=micro_batch)).to(device)
    model.grow(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=STUDY_RECIPE.lr)

    def inputs(maps: Maps) -> torch.Tensor:
        return torch.from_numpy(model.inputs(reference, maps.counts[:, reference.live])).to(device)

    train = [inputs(run.part(Part.TRAIN)) for run in runs]
    images_ML, label_M = torch.cat(train), torch.arange(2).repeat_interleave(torch.tensor([len(rows) for rows in train]))
    label_M = label_M.to(device)

    def asked(maps: list[Maps]) -> float:
        model.eval()
        with torch.inference_mode():
            return told_apart([torch.cat([model(rows) for rows in inputs(m).split(micro_batch)]).cpu().numpy() for m in maps])

    began, seconds, losses = clock(), [], []
    few, found, whole = [], 0.0, False
    batches = drawn(len(label_M), STUDY_RECIPE.batch, seed)
    while clock() - began < 60 * minutes and not (whole and found >= TARGET_AUC and len(seconds) >= 3):
        start = clock()
        model.train()
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for rows in torch.from_numpy(next(batches)).to(device).split(micro_batch):
            part = nn.functional.cross_entropy(model(images_ML[rows]), label_M[rows]) * (len(rows) / STUDY_RECIPE.batch)
            part.backward()
            loss += part.detach()
        optimizer.step()
        seconds.append(clock() - start)
        losses.append(round(loss.item(), 5))
        if not (whole and found >= TARGET_AUC):
            few.append(asked([maps.take(np.linspace(0, len(maps) - 1, QUICK_TEST).astype(int)) for maps in test]))
            whole = few[-1] >= TARGET_AUC
            found, needed = (asked(test) if whole else few[-1]), len(seconds)
        print(f"study, step {len(seconds)}: {seconds[-1]:.1f} s, loss {losses[-1]:.4f}, AUC {found:.6f}", file=sys.stderr)
    each = statistics.median(seconds[:3]) / STUDY_RECIPE.batch
    return {
        "reached": bool(whole and found >= TARGET_AUC), "steps": needed, "images": needed * STUDY_RECIPE.batch,
        "s_an_image": each, "cost_s": each * needed * STUDY_RECIPE.batch, "auc": found, "auc_of_few": few, "loss": losses,
        "micro_batch": micro_batch, "step_s": [round(s, 4) for s in seconds],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("default", "study"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="time limit of the study")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument(
        "--micro-batch", type=int, default=STUDY_RECIPE.micro_batch, help="images in a forward pass of the study"
    )
    asked = parser.parse_args()
    set_threads(1)
    device = torch.device(asked.device)
    runs = pair(asked.seed, LUMISECTIONS)
    test = [run.part(Part.TEST) for run in runs]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "seed": asked.seed}
    found |= {"test_lumisections": [len(maps) for maps in test]}
    if asked.only != "study":
        found["default"] = default_cost(pair(asked.seed, DEFAULT_LUMISECTIONS), test, asked.seed, device)
    if asked.only != "default":
        found["study"] = study_cost(runs, test, asked.seed, asked.minutes, device, asked.micro_batch)
    if asked.only is None and found["default"]["cost_s"]:
        found["ratio"] = found["study"]["cost_s"] / found["default"]["cost_s"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
