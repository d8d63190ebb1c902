"""Packed exemplars: eight times as many in the same bytes, come back at the nearest level, and follow a new reference."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.checks import check_strategy
from dqmstream.learners.gradient.packed import LEVELS, PackedExemplars, ResidualCodec
from dqmstream.learners.memory.exemplars import ExemplarMemory
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream

RUNS = make_stream(3, drift=0.02, seed=1, n=100)
REFERENCE = Reference.fit(RUNS[0].part(Part.TRAIN))
COUNTS = [run.part(Part.TRAIN).counts[:, REFERENCE.live] for run in RUNS]


def test_residuals_come_back_to_the_nearest_level() -> None:
    codec = ResidualCodec(REFERENCE)
    counts = COUNTS[0].copy()
    counts[:, 5] = 0  # a channel that is dead, many deviations away
    before = REFERENCE.residuals_of_live(counts)
    after = REFERENCE.residuals_of_live(codec.counts(codec.packed(counts)))
    # Conditions are measured anew on the rounded counts, which moves all channels together.
    nearest = LEVELS[np.abs(before[..., None] - LEVELS).argmin(axis=2)]
    assert np.abs(after - nearest).mean() < 0.1
    assert (after[:, 5] < -1).all()
    left_out = np.mean((nearest - before)[:, 6:] ** 2)
    assert 0.09 < left_out < 0.17  # .1175 of a normal residual


def test_a_channel_without_a_known_deviation_moves_no_condition() -> None:
    response = REFERENCE.fitted
    assert isinstance(response, Saturating)
    spread = response.spread.copy()
    spread[100] = 1e6
    unsure = Saturating(response.size, response.rate, spread, response.at)
    reference = Reference(REFERENCE.live, COUNTS[0].mean(axis=0), unsure)
    codec = ResidualCodec(reference)
    both = COUNTS[0], codec.counts(codec.packed(COUNTS[0]))
    before, after = (reference.conditions_of_live(rows.astype(np.float64)) for rows in both)
    np.testing.assert_allclose(after, before, rtol=0.01)


def test_a_lumisection_without_counts_comes_back_as_one() -> None:
    codec = ResidualCodec(REFERENCE)
    assert not codec.counts(codec.packed(np.zeros((2, REFERENCE.channels), dtype=np.float32))).any()


def test_nearly_eight_times_as_many_fit() -> None:
    packed, plain = PackedExemplars(REFERENCE, 40_000, seed=0), ExemplarMemory(REFERENCE.channels, 40_000, seed=0)
    for counts in COUNTS:
        packed.add(counts, REFERENCE.residuals_of_live)
        plain.add(counts)
    assert sum(packed.sizes) == min(40_000 // 242, sum(map(len, COUNTS)))
    assert sum(plain.sizes) == 40_000 // 1864
    assert packed.memory_bytes() <= 40_000
    again = PackedExemplars(REFERENCE, 40_000, seed=0, least=0)
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
    assert np.median(np.abs(memory.of(0) - before) / REFERENCE.response(before).deviation) < 0.5


@pytest.mark.parametrize("name", ["replay"])
def test_a_strategy_with_packed_exemplars_meets_the_protocol(name: str) -> None:
    recipe = Recipe(model="linear", products=4, packed=True, steps=3, batch=16)
    check_strategy(
        lambda seed: make_strategy(name, geometry=Geometry(1), seed=seed, recipe=recipe, memory_bytes=100_000, device="cpu"),
        memory_bytes=100_000,
    )
