"""Cost of a training step in the Avalanche template over a plain PyTorch loop with the same model, batches and optimizer.

    python -m benchmarks.training

Prints one JSON array, the last line of stdout. `bare_over_template` is the plain loop's time over the template's, by process
time; 1 is no cost. Its quartiles are over rounds in which both are timed in turn. It takes two minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.replay import Replay
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate, decay_groups, rate_at
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.lumisection import he_depth1_mask

CLASSES, ROWS = 10, 200
CPU = torch.device("cpu")
METHODS: tuple[type[Method], ...] = (Naive, Replay)


def material(classes: list[int]) -> dict[int, np.ndarray]:
    """Random residuals of these classes: (ROWS, live) each."""
    rng = np.random.default_rng(0)
    return {i: rng.standard_normal((ROWS, int(he_depth1_mask().sum())), dtype=np.float32) for i in classes}


def model_of(recipe: Recipe) -> Network:
    torch.manual_seed(0)
    model = build(he_depth1_mask()[None], recipe)
    model.grow(CLASSES)
    return model


def by_template(method: type[Method], recipe: Recipe, lesson: Lesson) -> tuple[float, Network]:
    """Seconds of a training by the template, and the trained model."""
    model = model_of(recipe)
    template = RunTemplate(model=model, recipe=recipe, device=CPU, plugin=method(recipe, 0, 10**6))
    began = time.process_time()
    template.teach(lesson)
    return time.process_time() - began, model


def by_hand(recipe: Recipe, lesson: Lesson) -> tuple[float, Network]:
    """Seconds of the same training in a plain loop, and the trained model."""
    model = model_of(recipe)
    began = time.process_time()
    optimizer = torch.optim.AdamW(decay_groups(model, recipe.weight_decay), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, lesson.steps, recipe))
    model.train()
    losses = []
    for residuals_BL, label_B in lesson.batches():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(residuals_BL), label_B) + model.auxiliary_loss()
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
        schedule.step()
        model.after_step()
    return time.process_time() - began, model


def measure(method: type[Method], batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Both ways in turn, which must end with the same weights. Naive's lesson has one class, replay's all."""
    recipe = replace(Recipe(), batch=batch, steps=steps)
    residuals = material([CLASSES - 1] if method is Naive else list(range(CLASSES)))
    ratios, seconds = [], []
    for round_ in range(rounds + 1):
        ends = []
        for template in (True, False) if round_ % 2 else (False, True):
            lesson = Lesson(residuals, recipe, steps, CPU, torch.Generator().manual_seed(1))
            ends.append(by_template(method, recipe, lesson) if template else by_hand(recipe, lesson))
        (first_s, first), (second_s, second) = ends
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        template_s, bare_s = (first_s, second_s) if round_ % 2 else (second_s, first_s)
        if round_:
            ratios.append(bare_s / template_s)
            seconds.append(template_s / steps)
    return {
        "method": method.name, "batch": batch, "step_ms": round(1000 * statistics.median(seconds), 2),
        "bare_over_template": [round(q, 3) for q in statistics.quantiles(ratios, n=4)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(method, batch, options.steps, options.rounds) for method in METHODS for batch in (64, 256)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
