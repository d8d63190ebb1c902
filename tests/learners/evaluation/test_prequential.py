"""Prequential accuracy by hand: predictions made on arrival are counted once their labels come."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.evaluation.prequential import Prequential, WindowAccuracy


def feed(prequential: Prequential, named: list[list[int]], truth: list[list[int]]) -> list[WindowAccuracy]:
    due = iter(truth)
    return [prequential.label(np.array(next(due))) for window in named if prequential.arrive(np.array(window))]


def test_by_hand_with_labels_a_window_late() -> None:
    prequential = Prequential(delay_windows=1, sliding_windows=2)
    found = feed(prequential, [[0, 0], [0, 1], [1, 1], [1, 1, 1]], [[0, 0], [1, 1], [1, 0]])
    assert (prequential.waiting, prequential.counted) == (1, 3)
    assert [(one.right, one.total) for one in found] == [(2, 2), (1, 2), (1, 2)]
    assert [one.cumulative for one in found] == pytest.approx([1.0, 3 / 4, 4 / 6])
    assert [one.sliding for one in found] == pytest.approx([1.0, 3 / 4, 2 / 4])
    last = prequential.drain(np.array([1, 1, 1]))
    assert (last.number, last.cumulative, last.sliding) == (3, pytest.approx(7 / 9), pytest.approx(4 / 5))
    assert prequential.waiting == 0


def test_windows_of_other_sizes_count_by_their_lumisections() -> None:
    prequential = Prequential(delay_windows=0, sliding_windows=1)
    found = feed(prequential, [[0] * 9, [0]], [[0] * 9, [1]])
    assert found[-1].cumulative == pytest.approx(0.9)
    assert found[-1].sliding == 0.0


def test_what_is_said_later_of_a_window_does_not_count() -> None:
    """A learner that predicts the run whose label came last is wrong on each new run until its label comes."""
    truth = np.repeat([0, 1, 2], 4)
    accuracy = []
    for delay in (0, 1, 2):
        prequential, taught = Prequential(delay), -1
        for _ in truth:
            if prequential.arrive(np.array([taught])):
                of = truth[prequential.counted]
                last = prequential.label(np.array([of]))
                taught = of
        while prequential.waiting:
            last = prequential.drain(truth[prequential.counted][None])
        accuracy.append(last.cumulative)
    assert accuracy == pytest.approx([9 / 12, 6 / 12, 3 / 12])


def test_the_array_that_was_named_may_be_used_again() -> None:
    prequential, named = Prequential(delay_windows=0), np.array([1, 1])
    prequential.arrive(named)
    named[:] = 0
    assert prequential.label(np.array([1, 1])).right == 2


def test_labels_out_of_time_and_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="at least 0 and 1"):
        Prequential(delay_windows=-1)
    prequential = Prequential(delay_windows=1)
    with pytest.raises(InputError, match="no window waits"):
        prequential.drain(np.array([0]))
    prequential.arrive(np.array([0, 0]))
    with pytest.raises(InputError, match="no label is due"):
        prequential.label(np.array([0, 0]))
    with pytest.raises(InputError, match="without a lumisection"):
        prequential.arrive(np.array([]))
    prequential.arrive(np.array([0]))
    with pytest.raises(InputError, match="labels are due for window 0"):
        prequential.arrive(np.array([0]))
    with pytest.raises(InputError, match="has 2 lumisections, but 1 labels came"):
        prequential.label(np.array([0]))
    assert prequential.label(np.array([0, 1])).right == 1
