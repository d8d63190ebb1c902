"""Split of a study's rows: no row is in two parts, folds test each row once, test lumisections have no neighbours in train."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.studies.recipes import recipe
from dqmstream.experiments.studies.row_split import observations, plan_split, split_rows
from tests.experiments.studies.training.arrays import ArrayImages

EGAMMA, RUNS = recipe("egamma_cnn_4"), recipe("two_run_vit")


def images_of(n: int) -> ArrayImages:
    return ArrayImages(np.zeros((n, 1, 2, 2), dtype=np.float32), np.arange(n) % 2)


def runs_of(lumisections: int, value: float = 1.0) -> ArrayImages:
    group = np.tile(np.arange(1, lumisections + 1), 2)
    maps = np.full((2 * lumisections, 1, 2, 2), value, dtype=np.float32)
    return ArrayImages(maps, np.repeat([0, 1], lumisections), group)


def test_images_are_drawn_by_the_recipes_shares_and_the_same_rows_for_every_seed() -> None:
    images = images_of(1000)
    how = plan_split(EGAMMA, images, "blocks", 0, 0)
    parts = split_rows(images, EGAMMA, how)
    assert [len(rows) for rows in (parts.train, parts.validation, parts.test)] == [800, 100, 100]
    assert len(np.unique(np.concatenate([parts.train, parts.validation, parts.test]))) == 1000
    assert all((np.diff(rows) > 0).all() for rows in (parts.train, parts.validation, parts.test))
    assert "80% train" in how.describe(EGAMMA) and not how.warning


@pytest.mark.parametrize("folds", [2, 5])
def test_over_the_folds_each_image_is_tested_once(folds: int) -> None:
    images = images_of(500)
    how = plan_split(EGAMMA, images, "blocks", folds, 0)
    parts = [split_rows(images, EGAMMA, how, fold) for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate([one.test for one in parts])), np.arange(500))
    for one in parts:
        assert not set(one.test) & (set(one.train) | set(one.validation)) and not set(one.train) & set(one.validation)


def test_runs_are_divided_in_blocks_with_gaps_longer_where_rows_are_interpolated() -> None:
    images = runs_of(400)
    parts = split_rows(images, RUNS, plan_split(RUNS, images, "blocks", 0, 0))
    apart = np.abs(images.group[parts.test][:, None] - images.group[parts.train][None]).min()
    assert apart > 20
    rows = runs_of(6000, value=0.5)
    how = plan_split(RUNS, rows, "blocks", 0, 0)
    assert how.scale == 25 and "25 times" in how.describe(RUNS)
    parts = split_rows(rows, RUNS, how)
    assert np.abs(rows.group[parts.test][:, None] - rows.group[parts.train][None]).min() > 500


def test_a_random_split_of_runs_is_warned_of() -> None:
    images = runs_of(400)
    how = plan_split(RUNS, images, "random", 0, 0)
    parts = split_rows(images, RUNS, how)
    assert "flatters" in how.warning
    assert np.abs(images.group[parts.test][:, None] - images.group[parts.train][None]).min() == 0


def test_a_limit_takes_rows_of_all_of_the_file() -> None:
    images = images_of(1000)
    parts = split_rows(images, EGAMMA, plan_split(EGAMMA, images, "blocks", 0, 100))
    assert sum(len(rows) for rows in (parts.train, parts.validation, parts.test)) == 100
    assert parts.train[0] < 150 and parts.train[-1] > 850
    runs = runs_of(400)
    parts = split_rows(runs, RUNS, plan_split(RUNS, runs, "blocks", 0, 200))
    assert len(parts.train) == 100


@pytest.mark.parametrize(
    ("images", "of", "asked", "reason"),
    [
        (runs_of(100), RUNS, ("blocks", 0, 0), "need 200 of each run"),
        (images_of(1000), EGAMMA, ("blocks", 0, 4), "larger --limit"),
        (images_of(1000), EGAMMA, ("blocks", 1, 0), "2 folds or more"),
        (runs_of(400), RUNS, ("hope", 0, 0), "no split 'hope'"),
        (runs_of(400), RUNS, ("blocks", 3, 0), "do not divide"),
    ],
)
def test_parts_without_a_class_and_splits_that_do_not_exist_are_refused(
    images: ArrayImages, of: object, asked: tuple[str, int, int], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        split_rows(images, of, plan_split(of, images, *asked))  # type: ignore[arg-type]


def test_an_observation_is_an_image_or_ten_lumisections_of_a_run() -> None:
    assert np.array_equal(observations(images_of(10), np.array([2, 5, 7]), 1), [0, 1, 2])
    runs = runs_of(40)
    assert len(np.unique(observations(runs, np.arange(80), 1))) == 8
    assert len(np.unique(observations(runs, np.arange(80), 25))) == 2
