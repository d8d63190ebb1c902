"""p-values among the scores of known runs keep their rate, with few blocks and where blocks of a run are alike."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.monitoring.known_scores import LEAST_BLOCKS, KnownScores, needed_blocks

LENGTHS = (1, 10)
IN_BLOCK = np.repeat([1, 20], [9, 30])
"""Lengths behind the scores of a block."""


def drawn(rng: np.random.Generator, runs: int, kind: str) -> tuple[KnownScores, np.ndarray]:
    """Scores of two blocks of each run, and those of another block of each.

    Neighbours within a block are nearly equal; blocks of a run share a part of their level.
    """
    level = rng.standard_normal((runs, 1)) + 2 * rng.standard_normal((runs, 3))
    score = level[..., None] + 0.3 * rng.standard_normal((runs, 3, len(IN_BLOCK)))
    score = {"normal": score, "wide": np.exp(score), "large": 1000 + 100 * score}[kind]
    known = KnownScores(LENGTHS)
    for run in range(runs):
        known.add(run, [(block, IN_BLOCK) for block in score[run, :2]])
    return known, score[:, 2]


@pytest.mark.parametrize("kind", ["normal", "wide", "large"])
@pytest.mark.parametrize(("runs", "rate"), [(8, 0.05), (8, 0.01), (40, 0.01)])
def test_the_rate_of_false_alarms_is_the_one_asked_for_or_less(kind: str, runs: int, rate: float) -> None:
    """The mean over many streams; at most half as much again, at rates that lie far outside what the blocks resolve too."""
    rng = np.random.default_rng(runs)
    flagged = []
    for _ in range(30):
        known, others = drawn(rng, runs, kind)
        p = known.p(others[:, IN_BLOCK == 20].ravel(), np.full(30 * runs, 20), rate)
        assert np.isfinite(p).all()
        flagged.append(np.mean(p <= rate))
    error = np.std(flagged) / np.sqrt(len(flagged))
    assert np.mean(flagged) - 2 * error < 1.5 * rate
    if rate * runs >= 0.4:
        assert np.mean(flagged) > 0.2 * rate, "an alarm must be possible"


def test_a_score_beyond_all_others_has_the_smallest_p_that_the_blocks_support() -> None:
    known, _ = drawn(np.random.default_rng(0), 40, "normal")
    p = known.p(np.array([-9.0, 3.0, 4.0, 6.0, 1e9]), np.full(5, 20), 0.01)
    assert (np.diff(p) < 0).all()
    assert p[-1] == known.least() == 1 / (16 * known.independent())
    assert needed_blocks(p[-1]) == pytest.approx(known.independent())


def test_blocks_of_one_run_count_as_one_where_they_are_alike() -> None:
    alike, apart = KnownScores(LENGTHS), KnownScores(LENGTHS)
    rng = np.random.default_rng(1)
    for run in range(10):
        of_run = 10 * rng.standard_normal()
        alike.add(run, [(of_run + rng.standard_normal(len(IN_BLOCK)), IN_BLOCK) for _ in range(4)])
        apart.add(run, [(10 * rng.standard_normal() + rng.standard_normal(len(IN_BLOCK)), IN_BLOCK) for _ in range(4)])
    assert 8 < alike.independent() < 14
    assert 25 < apart.independent() <= 40


def test_too_few_blocks_give_no_p() -> None:
    known = KnownScores(LENGTHS)
    assert known.least() == np.inf and np.isnan(known.p(np.ones(3), np.full(3, 20), 0.5)).all()
    known, _ = drawn(np.random.default_rng(2), 6, "normal")
    assert known.independent() >= LEAST_BLOCKS
    assert np.isfinite(known.p(np.ones(3), np.full(3, 20), 0.05)).all()
    assert np.isnan(known.p(np.ones(3), np.full(3, 20), 0.001)).all(), "a rate far beyond what the blocks can resolve"
    short = KnownScores(LENGTHS)
    for run in range(20):
        short.add(run, [(np.ones(5), np.arange(1, 6))])
    assert np.isnan(short.p(np.ones(1), np.full(1, 20), 0.05)).all(), "scores of short windows say nothing of long ones"
    assert np.isfinite(short.p(np.ones(1), np.full(1, 3), 0.05)).all()


def test_scores_of_long_ago_fade() -> None:
    """The scores of known runs fall from about 100 to about 0, and come back."""
    known, rng = KnownScores(LENGTHS), np.random.default_rng(3)

    def learn(first: int, runs: int, level: float) -> float:
        for run in range(first, first + runs):
            known.add(run, [(level + rng.standard_normal(len(IN_BLOCK)), IN_BLOCK) for _ in range(2)])
        return float(known.p(np.array([100.0]), np.array([20]), 0.05)[0])

    assert learn(0, 40, 100.0) > 0.2
    assert learn(40, 20, 0.0) > 0.2
    assert learn(60, 280, 0.0) < 0.01
    assert learn(340, 10, 100.0) > 0.1
    assert len(known.run) == 400


def test_scores_that_are_not_numbers_do_not_enter() -> None:
    clean, dirty = KnownScores(LENGTHS), KnownScores(LENGTHS)
    rng = np.random.default_rng(4)
    for run in range(12):
        block = rng.standard_normal(len(IN_BLOCK))
        clean.add(run, [(block, IN_BLOCK)])
        dirty.add(run, [(np.append(block, np.nan), np.append(IN_BLOCK, 20)), (np.full(3, np.nan), np.full(3, 20))])
    np.testing.assert_array_equal(dirty.blocks, clean.blocks)


def test_the_state_is_restored_and_a_damaged_one_refused() -> None:
    known, others = drawn(np.random.default_rng(5), 10, "wide")
    again = KnownScores(LENGTHS)
    again.restore(known.state())
    np.testing.assert_array_equal(again.p(others[0], IN_BLOCK, 0.05), known.p(others[0], IN_BLOCK, 0.05))
    for missing in known.state():
        with pytest.raises(StateError, match="damaged"):
            again.restore({name: array for name, array in known.state().items() if name != missing})
    again.restore({})
    assert again.independent() == 0
