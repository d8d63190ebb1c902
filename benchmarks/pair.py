"""The default learner against the recipe of the second study on the two published runs: what an AUC of .9999 costs each.

    python -m benchmarks.pair [--only default | study] [--seed 0] [--minutes 60]

Cost is processor seconds an image times images needed, on one thread, until AUC is at least .9999 on more than 1000 test
lumisections of each run, drawn as the stream `pair` has them (luminosity gives it away, as in the originals).

* study: ViT-B/16 on maps resized to 224 x 224, cross-entropy, Adam at 1e-4, batches of 250 in micro-batches (`STUDY` in
  `learners.recipe`); seconds an image are the median of its first three steps. It is asked after each step: first on 100
  test lumisections a run, and on all of them where no mistake was made there.
* default: what `dqmstream learn` does with two runs of 200 lumisections (100 to train on), with 1, 2, 4, ... steps of its
  network; seconds are of the whole learning, reference, memories and closed form too, the median of three.

Prints one JSON object, the last line of stdout; what is seen on the way goes to stderr. The study takes up to an hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from dqmstream.experiments.cells import as_run_data
from dqmstream.experiments.simulator import stream
from dqmstream.learners.evaluation import auc
from dqmstream.learners.learner import set_threads
from dqmstream.learners.networks import build
from dqmstream.learners.recipe import STUDY
from dqmstream.learners.reference import Reference
from dqmstream.learners.registry import DEFAULT, make_strategy, recipe_of
from dqmstream.learners.splits import Part, Split
from dqmstream.learners.strategy import Maps, RunData
from dqmstream.lumisection import Geometry

ENOUGH = 0.9999
LUMISECTIONS = 6800
"""A run: 34 cycles of the split, with 3400 lumisections to train on and 1020 to test."""

SHORT = 200
"""Lumisections a run that the default learns from; it needs no more."""

FEW = 100
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def pair(seed: int, lumisections: int) -> list[RunData]:
    return [as_run_data(run, Split()) for run in stream("pair", seed=seed, lumisections=lumisections)]


def told_apart(scores: list[np.ndarray]) -> float:
    """AUC of the second run against the first, from log-scores (n, 2) of each."""
    first, second = (score[:, 1] - score[:, 0] for score in scores)
    return auc(second, first)


def default_cost(learnt: list[RunData], test: list[Maps], seed: int) -> dict[str, Any]:
    """The fewest steps after which the default has it, and what they took."""
    tried = {}
    for steps in STEPS:
        seconds = []
        for _ in range(3):
            began = time.process_time()
            strategy = make_strategy(
                DEFAULT, geometry=Geometry(1), seed=seed, recipe=recipe_of(DEFAULT, {"steps": steps}), device="cpu"
            )
            logs = [strategy.learn(i, run, lambda past: learnt[past]) for i, run in enumerate(learnt)]
            seconds.append(time.process_time() - began)
        images = sum(log.samples for log in logs)
        tried[steps] = told_apart([strategy.scores(maps) for maps in test])
        print(f"{DEFAULT}, {steps} steps: {images} images, {seconds[-1]:.2f} s, AUC {tried[steps]:.6f}", file=sys.stderr)
        if tried[steps] >= ENOUGH:
            took = statistics.median(seconds)
            return {"steps": steps, "images": images, "s_an_image": took / images, "cost_s": took, "auc": tried}
    return {"cost_s": None, "auc": tried}


def drawn(images: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of batches for ever: all of them in an order of its own in each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(images)
        yield from (order[start : start + batch] for start in range(0, images - batch + 1, batch))


def study_cost(runs: list[RunData], test: list[Maps], seed: int, minutes: float) -> dict[str, Any]:
    """The study's training, until it has it or the time is up."""
    torch.manual_seed(seed)
    reference = Reference.fit(runs[0].part(Part.TRAIN))
    model = build(reference.live, STUDY)
    model.grow(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=STUDY.lr)

    def inputs(maps: Maps) -> torch.Tensor:
        return torch.from_numpy(model.inputs(reference, maps.counts[:, reference.live]))

    train = [inputs(run.part(Part.TRAIN)) for run in runs]
    images_ML, label_M = torch.cat(train), torch.arange(2).repeat_interleave(torch.tensor([len(rows) for rows in train]))

    def asked(maps: list[Maps]) -> float:
        model.eval()
        with torch.inference_mode():
            return told_apart([torch.cat([model(rows) for rows in inputs(m).split(STUDY.micro_batch)]).numpy() for m in maps])

    began, seconds, losses = time.process_time(), [], []
    few, found, whole = [], 0.0, False
    batches = drawn(len(label_M), STUDY.batch, seed)
    while time.process_time() - began < 60 * minutes and not (whole and found >= ENOUGH and len(seconds) >= 3):
        start = time.process_time()
        model.train()
        optimizer.zero_grad()
        loss = 0.0
        for rows in torch.from_numpy(next(batches)).split(STUDY.micro_batch):
            part = nn.functional.cross_entropy(model(images_ML[rows]), label_M[rows]) * (len(rows) / STUDY.batch)
            part.backward()
            loss += part.item()
        optimizer.step()
        seconds.append(time.process_time() - start)
        losses.append(round(loss, 5))
        if not (whole and found >= ENOUGH):
            few.append(asked([maps.take(np.linspace(0, len(maps) - 1, FEW).astype(int)) for maps in test]))
            whole = few[-1] >= ENOUGH
            found, needed = (asked(test) if whole else few[-1]), len(seconds)
        print(f"study, step {len(seconds)}: {seconds[-1]:.1f} s, loss {loss:.4f}, AUC {found:.6f}", file=sys.stderr)
    each = statistics.median(seconds[:3]) / STUDY.batch
    return {
        "reached": bool(whole and found >= ENOUGH), "steps": needed, "images": needed * STUDY.batch, "s_an_image": each,
        "cost_s": each * needed * STUDY.batch, "auc": found, "auc_of_few": few, "loss": losses,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("default", "study"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="processor time after which the study is given up")
    asked = parser.parse_args()
    set_threads(1)
    runs = pair(asked.seed, LUMISECTIONS)
    test = [run.part(Part.TEST) for run in runs]
    found: dict[str, Any] = {"seed": asked.seed, "test_lumisections": [len(maps) for maps in test]}
    if asked.only != "study":
        found["default"] = default_cost(pair(asked.seed, SHORT), test, asked.seed)
    if asked.only != "default":
        found["study"] = study_cost(runs, test, asked.seed, asked.minutes)
    if asked.only is None and found["default"]["cost_s"]:
        found["ratio"] = found["study"]["cost_s"] / found["default"]["cost_s"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
