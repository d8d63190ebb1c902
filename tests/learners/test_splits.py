"""Splits are pure functions of the lumisection number: blocks with gaps, random ones and folds."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import WARNING_RANDOM, Part, Split, assign, assign_by, kind_of
from dqmstream.lumisection import he_depth1_mask
from tests.learners.streams import make_stream


def test_a_cycle_of_200() -> None:
    parts = assign(np.arange(1, 201))
    blocks = [(part, len(list(parts[start:stop]))) for part, start, stop in _blocks(parts)]
    assert blocks == [
        (Part.TRAIN, 100), (Part.GAP, 20), (Part.VALIDATION, 10), (Part.GAP, 20), (Part.TEST, 30), (Part.GAP, 20)
    ]  # fmt: skip
    np.testing.assert_array_equal(assign(np.arange(201, 401)), parts)


def test_parts_never_touch() -> None:
    """At least 20 lumisections of no part lie between two parts, in whatever order they are assigned."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, 1001))
    parts = assign(numbers)
    order = np.argsort(numbers)
    for part, start, stop in _blocks(parts[order]):
        assert part != Part.GAP or stop - start == 20


def test_interpolated_lumisections_have_blocks_25_times_as_long() -> None:
    np.testing.assert_array_equal(assign(np.arange(1, 5001), scale=25), np.repeat(assign(np.arange(1, 201)), 25))


@pytest.mark.parametrize("scale", [1, 25])
def test_a_short_run_has_one_block_of_each_part_with_gaps(scale: int) -> None:
    """Of all lengths from 1 to 100, also where lumisections are missing."""
    for size in range(1, 101):
        whole = np.arange(1, size * scale + 1)
        some = np.random.default_rng(size).permutation(np.arange(1, 3 * size * scale + 1))[: size * scale]
        assert kind_of(whole) == "short" or scale > 1
        for numbers in (whole, some):
            blocks = _blocks(assign_by("short", numbers, scale)[np.argsort(numbers)])
            if size < 5:
                assert [part for part, *_ in blocks] == [Part.TRAIN], "which leaves nothing to judge it by"
                continue
            assert [part for part, *_ in blocks] == [Part.TRAIN, Part.GAP, Part.VALIDATION, Part.GAP, Part.TEST]
            lengths = np.diff([0, *(stop for *_, stop in blocks)])
            assert lengths[1] == lengths[3] == scale * max(1, size // 10)
            assert lengths[4] == scale * max(1, size // 5) and lengths.sum() == size * scale
            assert size < 20 or lengths[0] >= 0.5 * size * scale


def test_runs_that_are_long_enough_have_the_blocks_that_they_always_had() -> None:
    for size in range(101, 1000):
        numbers = np.arange(1, size + 1)
        assert kind_of(numbers) == ("blocks" if size >= 151 else "short")
    np.testing.assert_array_equal(Split().assign_run(numbers), assign(numbers))
    drawn = Split("random", seed=3)
    np.testing.assert_array_equal(drawn.assign_run(numbers[:30]), drawn.assign(numbers[:30]))
    assert kind_of(np.r_[1:11, 300:321]) == "short", "few lumisections of a long run"
    with pytest.raises(InputError, match="no split 'thirds' of a run"):
        assign_by("thirds", numbers)


def test_blocks_are_the_split_of_the_ledger() -> None:
    numbers = np.arange(1, 1001)
    for scale in (1, 25):
        np.testing.assert_array_equal(Split().assign(numbers, scale), assign(numbers, scale))


def test_a_random_split_has_the_shares_of_blocks_and_depends_on_seed_and_number_alone() -> None:
    numbers = np.arange(1, 20_001)
    parts = Split("random", seed=3).assign(numbers)
    np.testing.assert_allclose(np.bincount(parts) / len(parts), [0.30, 0.50, 0.05, 0.15], atol=0.01)
    shuffled = np.random.default_rng(0).permutation(numbers)
    np.testing.assert_array_equal(Split("random", seed=3).assign(shuffled), parts[shuffled - 1])
    np.testing.assert_array_equal(Split("random", seed=3).assign(numbers[7:8], scale=25), parts[7:8])


@pytest.mark.parametrize("lag", [1, 2, 20])
def test_a_random_split_draws_lumisections_independently(lag: int) -> None:
    """Neighbours, and other seeds, have the same part as often as by chance."""
    numbers = np.arange(1, 20_001)
    first, second = (Split("random", seed=seed).assign(numbers) for seed in (0, lag))
    chance = 0.30**2 + 0.50**2 + 0.05**2 + 0.15**2
    assert np.mean(first[lag:] == first[:-lag]) == pytest.approx(chance, abs=0.02)
    for shift in (0, lag):
        assert np.mean(first[shift:] == second[: len(second) - shift]) == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("folds", [2, 4, 5, 8, 10, 20])
@pytest.mark.parametrize("scale", [1, 25])
def test_folds_test_every_lumisection_exactly_once_with_the_gaps_of_blocks(folds: int, scale: int) -> None:
    numbers = np.arange(1, 1000 * scale + 1)
    parts = np.stack([Split("folds", fold=fold, folds=folds).assign(numbers, scale) for fold in range(folds)])
    assert ((parts == Part.TEST).sum(axis=0) == 1).all()
    for of_fold in parts:
        inner = _blocks(of_fold)[1:-1]
        assert {stop - start for part, start, stop in inner if part == Part.GAP} == {20 * scale}
        assert {stop - start for part, start, stop in inner if part == Part.TEST} == {200 // folds * scale}
        assert all(Part.GAP in (a[0], b[0]) for a, b in itertools.pairwise(inner))
        assert (np.bincount(of_fold, minlength=4) > 0).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "kfold"}, "no split 'kfold'; choose one of blocks, random, folds"),
        ({"kind": "random", "seed": -1}, "seed"),
        ({"kind": "folds", "folds": 3}, "choose 2, 4, 5"),
        ({"kind": "folds", "folds": 1}, "choose 2, 4, 5"),
        ({"kind": "folds", "folds": 40}, "choose 2, 4, 5"),
        ({"kind": "folds", "fold": 5}, "fold 5 is not one of the 5"),
    ],
)
def test_impossible_splits_are_refused(wrong: dict[str, str | int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Split(**wrong)  # type: ignore[arg-type]


def test_neighbouring_rows_identify_a_run_under_a_random_split_and_not_under_blocks() -> None:
    """Interpolated rows of two runs that do not differ: the effect that the warning describes."""
    correct = {}
    for split, scale in ((Split("random"), 1), (Split("blocks"), 20)):
        rows = [_interpolated(run, 8000) for run in make_stream(2, drift=0.0, seed=1, n=400)]
        parts = split.assign(np.arange(1, 8001), scale)
        train, test = (np.flatnonzero(parts == part)[::step] for part, step in ((Part.TRAIN, 4), (Part.TEST, 40)))
        known = np.concatenate([of_run[train] for of_run in rows])
        hits = []
        for i, of_run in enumerate(rows):
            distance = (known**2).sum(axis=1) - 2 * of_run[test] @ known.T
            hits.append(np.mean(distance.argmin(axis=1) // len(train) == i))
        correct[split.kind] = np.mean(hits)
    # Chance is .5; in blocks two runs of a few test blocks scatter by .08 about it.
    assert correct["random"] > 0.8
    assert correct["blocks"] < 0.7


def test_the_warning_quotes_its_source() -> None:
    assert "python -m benchmarks.splits" in WARNING_RANDOM
    assert importlib.util.find_spec("benchmarks.splits") is not None


def _interpolated(run: RunData, rows: int) -> np.ndarray:
    """A run's live channels at evenly spaced places between its lumisections: (rows, live)."""
    counts = run.maps.counts[:, 0, he_depth1_mask()]
    place = np.linspace(0, len(counts) - 1, rows)
    before = np.minimum(place.astype(int), len(counts) - 2)
    return counts[before] + (place - before)[:, None] * (counts[before + 1] - counts[before])


def _blocks(parts: np.ndarray) -> list[tuple[Part, int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1), len(parts)]
    return [(Part(parts[a]), a, b) for a, b in itertools.pairwise(edges)]
