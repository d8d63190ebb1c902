"""The exemplar memory stays within its bytes, shares them equally, and chooses by seed and experience alone."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.learners.memory.exemplars import ExemplarMemory

CHANNELS = 10


def _run(i: int, n: int = 40) -> np.ndarray:
    """Rows that hold the numbers of their run and lumisection."""
    rows = np.zeros((n, CHANNELS), dtype=np.float32)
    rows[:, 0], rows[:, 1] = i, np.arange(n)
    return rows


@pytest.mark.parametrize("budget", [1000, 1019, 237])
def test_every_class_has_an_equal_share_of_a_fixed_number_of_bytes(budget: int) -> None:
    memory = ExemplarMemory(CHANNELS, budget, seed=0)
    for i in range(30):
        memory.add(_run(i))
        assert memory.memory_bytes() <= budget
        sizes = [len(memory.of(k)) for k in range(memory.classes)]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == min(memory.places, 40 * (i + 1))
        for k in range(memory.classes):
            kept = memory.of(k)
            assert (kept[:, 0] == k).all()
            assert len(np.unique(kept[:, 1])) == len(kept)


def test_what_is_kept_depends_on_seed_and_experience_alone() -> None:
    first, second, other = (ExemplarMemory(CHANNELS, 1000, seed=seed) for seed in (1, 1, 2))
    for i in range(4):
        for memory in (first, second, other):
            memory.add(_run(i))
    np.testing.assert_array_equal(first.state()["counts"], second.state()["counts"])
    assert not np.array_equal(first.state()["counts"], other.state()["counts"])


def test_fractional_counts_are_kept_unchanged_in_half_the_places() -> None:
    memory = ExemplarMemory(CHANNELS, 1000, seed=0)
    memory.add(_run(0))
    assert memory.state()["counts"].dtype == np.uint16
    memory.add(_run(1) + np.float32(0.25))
    assert memory.places == 25
    assert memory.memory_bytes() <= 1000
    assert (memory.of(0)[:, 0] == 0).all()
    assert (memory.of(1)[:, 0] == 1.25).all()
    memory.add(_run(2))
    assert memory.state()["counts"].dtype == np.float32


@pytest.mark.parametrize("large", [65535, 65536])
def test_large_counts_survive(large: int) -> None:
    memory = ExemplarMemory(CHANNELS, 1000, seed=0)
    memory.add(np.full((3, CHANNELS), large, dtype=np.float32))
    np.testing.assert_array_equal(memory.of(0), large)


def test_a_state_is_restored_only_by_a_memory_of_the_same_size() -> None:
    memory = ExemplarMemory(CHANNELS, 1000, seed=0)
    for i in range(3):
        memory.add(_run(i))
    again = ExemplarMemory(CHANNELS, 1000, seed=0)
    again.restore(memory.state())
    for stored in (memory, again):
        stored.add(_run(3))
    np.testing.assert_array_equal(again.state()["counts"], memory.state()["counts"])
    for channels, budget in ((CHANNELS + 1, 1000), (CHANNELS, 100)):
        with pytest.raises(StateError):
            ExemplarMemory(channels, budget, seed=0).restore(memory.state())


def test_a_budget_below_one_lumisection_is_refused() -> None:
    with pytest.raises(InputError, match="cannot hold one lumisection"):
        ExemplarMemory(CHANNELS, 19, seed=0)
