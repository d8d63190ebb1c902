"""The split: a pure function of the lumisection number, blocks with gaps."""

from __future__ import annotations

import itertools

import numpy as np

from dqmstream.learners.splits import Part, assign


def test_a_cycle_of_200() -> None:
    parts = assign(np.arange(1, 201))
    blocks = [(part, len(list(parts[start:stop]))) for part, start, stop in _blocks(parts)]
    assert blocks == [
        (Part.TRAIN, 100), (Part.GAP, 20), (Part.VALIDATION, 10), (Part.GAP, 20), (Part.TEST, 30), (Part.GAP, 20)
    ]  # fmt: skip
    np.testing.assert_array_equal(assign(np.arange(201, 401)), parts)


def test_parts_never_touch() -> None:
    """Between lumisections of two parts lie at least 20 of none, in any order in which they are asked for."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, 1001))
    parts = assign(numbers)
    order = np.argsort(numbers)
    for part, start, stop in _blocks(parts[order]):
        assert part != Part.GAP or stop - start == 20


def test_interpolated_lumisections_have_blocks_25_times_as_long() -> None:
    np.testing.assert_array_equal(assign(np.arange(1, 5001), scale=25), np.repeat(assign(np.arange(1, 201)), 25))


def _blocks(parts: np.ndarray) -> list[tuple[Part, int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1), len(parts)]
    return [(Part(parts[a]), a, b) for a, b in itertools.pairwise(edges)]
