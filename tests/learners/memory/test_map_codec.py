"""Packed lumisections come back bit by bit, and whole counts take two bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.maps import Maps
from dqmstream.learners.memory.map_codec import packed, unpacked


def maps(counts: list[float], size: int = 3) -> Maps:
    rows = np.zeros((size, 1, 64, 72), dtype=np.float32)
    rows[:, 0, 5, : len(counts)] = counts
    numbers = np.arange(1, size + 1)
    return Maps(rows, np.full(size, np.nan), np.linspace(7, 3, size), numbers)


@pytest.mark.parametrize("odd", [[3, 65535], [3, 65536], [2.5], [-0.0, 1], [np.nan, 1], [np.inf], [-1, 2], []])
def test_every_bit_comes_back(odd: list[float]) -> None:
    several = [maps([1, 2, 3]), maps(odd), maps([], 0), maps([7], 1)]
    back = unpacked(packed(several))
    assert [len(one) for one in back] == [3, 3, 0, 1]
    for one, other in zip(several, back, strict=True):
        assert one.counts.tobytes() == other.counts.tobytes()
        assert one.counts.dtype == other.counts.dtype
        for name in ("n_events", "pileup", "lumisection"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert unpacked(packed([])) == []


def test_whole_counts_of_live_channels_take_two_bytes() -> None:
    assert packed([maps([1, 2, 3], 10)])["counts"].nbytes == 10 * 3 * 2


def test_damaged_arrays_are_refused() -> None:
    state = packed([maps([1])])
    for name in state:
        with pytest.raises(StateError, match=name):
            unpacked({other: array for other, array in state.items() if other != name})
    with pytest.raises(StateError, match="differs from the stated sizes"):
        unpacked(state | {"sizes": np.array([2])})
