"""Packed exemplars: four times as many in the same bytes, given back to half a level, and packed anew by a new reference."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.checks import check_strategy
from dqmstream.learners.gradient.packed import LEVELS, PackedExemplars, ResidualCodec
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.reference import CLIP, Reference
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream

RUNS = make_stream(3, drift=0.02, seed=1, n=100)
REFERENCE = Reference.fit(RUNS[0].part(Part.TRAIN))
COUNTS = [run.part(Part.TRAIN).counts[:, REFERENCE.live] for run in RUNS]


def test_residuals_come_back_to_half_a_level() -> None:
    counts = COUNTS[1].copy()
    counts[:, 5] = 0  # a channel that is dead, many deviations away
    before = REFERENCE.residuals_of_live(counts)
    after = REFERENCE.residuals_of_live(ResidualCodec(REFERENCE).counts(ResidualCodec(REFERENCE).packed(counts)))
    moved = np.abs(after - before)
    # Half a level, and what the conditions move that are measured anew on the rounded counts.
    assert moved[np.abs(before) < 4].max() < 0.84 / 2 + 0.4
    assert moved.mean() < 0.84 / 4 + 0.02
    assert (after[:, 5] < LEVELS[1]).all()
    assert LEVELS[0] == -CLIP and len(LEVELS) == 16


def test_a_lumisection_without_counts_comes_back_as_one() -> None:
    codec = ResidualCodec(REFERENCE)
    assert not codec.counts(codec.packed(np.zeros((2, REFERENCE.channels), dtype=np.float32))).any()


def test_nearly_four_times_as_many_fit() -> None:
    packed, plain = PackedExemplars(REFERENCE, 100_000, seed=0), ExemplarMemory(REFERENCE.channels, 100_000, seed=0)
    for counts in COUNTS:
        packed.add(counts, REFERENCE.residuals_of_live)
        plain.add(counts)
    assert sum(packed.sizes) == min(100_000 // 474, sum(map(len, COUNTS)))
    assert sum(plain.sizes) == 100_000 // 1864
    assert packed.memory_bytes() <= 100_000
    again = PackedExemplars(REFERENCE, 100_000, seed=0, least=0)
    again.restore(packed.state())
    for i in range(3):
        np.testing.assert_array_equal(again.of(i), packed.of(i))


def test_exemplars_are_packed_anew_where_the_reference_changes() -> None:
    other = Reference.fit(RUNS[2].part(Part.TRAIN))
    other = Reference(REFERENCE.live, other.typical.counts[0], other.fitted)
    memory = PackedExemplars(REFERENCE, 100_000, seed=0)
    memory.add(COUNTS[1])
    before = memory.of(0)
    memory.use(other)
    assert np.median(np.abs(memory.of(0) - before) / REFERENCE.response(before).deviation) < 0.84 / 2


@pytest.mark.parametrize("name", ["replay"])
def test_a_strategy_with_packed_exemplars_meets_the_protocol(name: str) -> None:
    recipe = Recipe(model="vit", dim=16, depth=1, heads=2, products=4, packed=True, steps=3, batch=16)
    check_strategy(
        lambda seed: make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=100_000, device="cpu"),
        memory_bytes=100_000,
    )
