"""GDumb trains from nothing on its balanced memory alone; RAR repeats batches of the new run and augments them anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dqmstream.learners.gradient import rar
from dqmstream.learners.gradient.rar import Rar, augmented, repeated
from dqmstream.learners.gradient.trainer import Lesson, takes_part_in_steps
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

BRIEF = Recipe(model="cnn", cnn_widths=(4, 6), steps=3, batch=16, lr=3e-3)
STREAM = make_stream(3, drift=0.03, seed=1, n=100)


def make(name: str, recipe: Recipe = BRIEF, memory_bytes: int = 40_000) -> Any:
    return make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=memory_bytes, device="cpu")


def test_gdumb_sees_nothing_but_its_memory_of_which_every_run_has_the_same_share() -> None:
    strategy = make("gdumb", replace(BRIEF, memory="reservoir"))
    for experience, run in enumerate(STREAM):
        strategy.learn(experience, run, reader(STREAM))
    method = strategy.method
    sizes = [len(rows) for rows in method.exemplars()]
    assert len(sizes) == 3 and max(sizes) - min(sizes) <= 1 and sum(sizes) == 40_000 // (2 * 932)
    kept = [rows.copy() for rows in method.exemplars()]
    seen = method.material(3, {3: np.full((30, 932), 7.0, np.float32)}, lambda i: pytest.fail("it reads no past run"))
    assert set(seen) == {0, 1, 2, 3} and len(seen[3]) < 30, "the new run has its share, not more"
    for rows, before in zip(seen.values(), kept, strict=False):
        assert len(rows) < len(before) and np.isin(rows, before).all()
    method.keep({3: np.zeros((30, 932), np.float32)}, lambda rows: rows)
    assert len(method.exemplars()) == 4, "a run is not added twice"


def test_gdumb_starts_from_new_weights() -> None:
    strategy = make("gdumb", replace(BRIEF, lr=0.0))
    weights = []
    for experience, run in enumerate(STREAM):
        strategy.learn(experience, run, reader(STREAM))
        weights.append(next(iter(strategy.network.parameters())).detach().clone())
    assert not torch.equal(weights[1], weights[2])


def lesson(noise: float) -> Lesson:
    rows = {i: np.random.default_rng(i).normal(size=(40, 50)).astype(np.float32) for i in range(3)}
    generator = torch.Generator().manual_seed(0)
    return Lesson(rows, replace(BRIEF, noise=noise), 12, torch.device("cpu"), generator)


def test_rar_repeats_each_batch_of_the_new_run_beside_other_exemplars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rar, "ERASED", 0.0)
    batches = list(repeated(lesson(0.0), 16, 4))
    assert len(batches) == 12
    for start in range(0, 12, 4):
        new, old = zip(*((x[:8], x[8:]) for x, _ in batches[start : start + 4]), strict=True)
        assert all(torch.equal(new[0], one) for one in new[1:])
        assert not any(torch.equal(old[0], one) for one in old[1:])
        assert not start or not torch.equal(new[0], batches[start - 4][0][:8])
    for _, label in batches:
        assert (label[:8] == 2).all() and set(label[8:].tolist()) == {0, 1}


def test_rar_augments_every_repeat_anew() -> None:
    (first, _), (second, _), *_ = repeated(lesson(0.5), 16, 4)
    assert not torch.equal(first[:8], second[:8])
    plain = torch.ones(64, 50)
    share = float((augmented(lesson(0.0), plain) == 0).float().mean())
    assert share == pytest.approx(rar.ERASED, abs=0.02)
    assert not takes_part_in_steps(Rar(BRIEF, 0, 10**6)), "so a GPU can record its steps"
