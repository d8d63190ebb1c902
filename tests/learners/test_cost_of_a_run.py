"""A run costs no more than the run before it: in calls, in memory, and in work on what is kept of all runs."""

from __future__ import annotations

import gc
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.matrix_row import Scores, evaluate_row
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.gradient.flops import StepFlops, step_flops
from dqmstream.learners.memory.merging import NearestRows, merged_rows
from dqmstream.learners.monitoring.drift import most_alike
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.monitoring.stretches import WINDOW
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.learners.stream.trim_heap import trim_heap
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

RECIPE = Recipe(dim=16, depth=1, heads=2, experts=2, steps=2, batch=16)
RUNS = make_stream(10, drift=0.03, seed=3)


@given(st.integers(0, 2**32 - 1))
def test_the_nearest_rows_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 5, (6, 2)).astype(float)  # with ties
    row_of_class = np.arange(6, dtype=np.int32)
    members = {i: {i} for i in range(6)}

    def apart(i: int) -> np.ndarray:
        return np.asarray(((rows - rows[i]) ** 2).sum(axis=1))

    nearest = NearestRows(apart, len(rows))
    for _ in range(12):
        if len(rows) < 3 or rng.random() < 0.5:
            rows = np.concatenate([rows, rng.integers(0, 5, (1, 2))])
            row_of_class = np.append(row_of_class, np.int32(len(rows) - 1))
            members[len(row_of_class) - 1] = {len(row_of_class) - 1}
            nearest.add()
        pairs = [(apart(i)[j], i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        _, first, second = min(pairs)
        assert nearest.pair == (first, second)
        both = {k for k, row in enumerate(row_of_class) if row in (first, second)}
        rows[first] = rows[[first, second]].mean(axis=0)
        rows = np.delete(rows, second, axis=0)
        row_of_class = merged_rows(row_of_class, first, second)
        nearest.merged(first, second)
        assert {k for k, row in enumerate(row_of_class) if row == first} == both
        assert set(row_of_class.tolist()) == set(range(len(rows)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_auc_of_all_runs_at_once_follows_its_definition(seed: int, runs: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(runs), rng.integers(0, runs, 12)]))
    log_p = np.log(rng.dirichlet(np.ones(runs), len(labels)).round(1) + 0.05)
    row = evaluate_row(Scores(log_p, labels, np.arange(len(labels))))
    for i in range(runs):
        mine, last = labels == i, max(i, 1)
        assert row.accuracy[i] == np.mean(log_p[mine].argmax(axis=1) == i)
        assert row.auc[i] == auc(log_p[mine, i], log_p[~mine, i])
        among = log_p[:, i] - np.logaddexp.accumulate(log_p, axis=1)[:, last]
        assert row.auc_fixed[i] == auc(among[mine], among[~mine & (labels <= last)])


def test_runs_scored_together_have_the_scores_of_each_alone() -> None:
    novelty = Novelty(Geometry(1), 0)
    for number, run in enumerate(RUNS[:5]):
        novelty.learn(number, run, reader(RUNS))
    several = [RUNS[7].maps, RUNS[1].part(Part.TEST), RUNS[2].maps.take(np.arange(1)), RUNS[8].maps.take(np.arange(WINDOW + 5))]
    together = novelty.score_each([*several, *several[:2]])  # more than one batch
    for maps, noted in zip(several, together[:4], strict=True):
        alone = novelty.score(maps)
        np.testing.assert_allclose(noted.score, alone.score, rtol=1e-9)
        np.testing.assert_array_equal(noted.nearest, alone.nearest)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_run_most_alike_has_the_smallest_median(kind: type) -> None:
    rng = np.random.default_rng(0)
    gains = np.cumsum(0.01 * rng.standard_normal((20, 301)), axis=0).astype(kind)
    variances = ((0.01 * rng.uniform(0.5, 2, (20, 1)) * rng.uniform(0.5, 2, 301)) ** 2).astype(kind)
    for row in range(20):
        median = np.median((gains - gains[row]) ** 2 / (variances + variances[row]), axis=1)
        median[row] = np.inf
        assert most_alike(row, gains, variances) == median.argmin()


@pytest.mark.parametrize("name", ["statistical", "replay", "hybrid"])
def test_a_late_run_calls_the_response_as_often_as_an_early_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known runs are handled together, so the number of calls does not grow with them."""
    calls = 0
    response = Reference.response

    def counted(reference: Reference, counts: np.ndarray) -> object:
        nonlocal calls
        calls += 1
        return response(reference, counts)

    monkeypatch.setattr(Reference, "response", counted)
    strategy = make_strategy(name, geometry=Geometry(1), seed=0, recipe=RECIPE, memory_bytes=120_000, device="cpu")
    state, asked = LearnerState(strategy, {}, Novelty(Geometry(1), 0), Evaluator(60)), []
    for number, run in enumerate(RUNS):
        before = calls
        learn_and_evaluate(state, number, run, reader(RUNS))
        asked.append(calls - before)
    # Fewer where a full budget has made a part of the strategy go.
    assert asked[-1] <= asked[4]


def test_no_tensor_of_a_training_stays_but_the_model() -> None:
    """Even without a garbage collection, which is rare in a process of many objects."""
    strategy = make_strategy("naive", geometry=Geometry(1), seed=0, recipe=RECIPE, device="cpu")
    held: list[int] = []
    gc.collect()
    gc.disable()
    try:
        for number, run in enumerate(RUNS[:4]):
            strategy.learn(number, run, reader(RUNS))
            held.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert held[3] == held[2]


def test_flops_of_a_step_follow_the_head() -> None:
    live = Reference.fit(RUNS[0].part(Part.TRAIN)).live
    counted, device = StepFlops(), torch.device("cpu")
    for readout in ("tokens", "class"):
        model = build(live, Recipe(dim=16, depth=1, heads=2, experts=2, readout=readout))
        for classes in (2, 3, 4, 9):
            model.grow(classes)
            assert counted.of_step(model, 8) == step_flops(model, 8, model.channels, device)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to give memory back")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    blocks = [bytearray(b"\1" * 60_000) for _ in range(2000)]
    stay = blocks[::100]
    blocks.clear()
    before = resident_mb()
    assert trim_heap()
    assert resident_mb() < before - 60
    assert len(stay) == 20
