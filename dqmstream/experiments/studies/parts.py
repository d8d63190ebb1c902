"""Which rows teach, choose and judge: blocks of lumisections of runs; drawn rows of images, which are independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.studies.recipes import StudyRecipe
from dqmstream.experiments.studies.training.batches import BLOCK, Images, Parts
from dqmstream.learners.splits import CYCLE, INTERPOLATED_SCALE, WARNING_RANDOM, Part, Split

SPLIT_SEED = 20240229
"""Of the rows that are drawn. It is none of the training seeds', so that all of them are judged on the same images."""

LOOKED_AT = 64
"""Lumisections that are looked at to find whether a file was interpolated: counts are whole."""


@dataclass(frozen=True)
class Division:
    """How the rows are divided.

    kind: of `learners.splits.Split` for runs; images know "random" and "folds" alone. folds: of a K-fold, 0 for one split.
    limit: rows at most, 0 for all. scale: of the blocks of lumisections, 25 where rows were interpolated.
    """

    of_runs: bool
    kind: str
    folds: int = 0
    limit: int = 0
    scale: int = 1

    @property
    def warning(self) -> str:
        """What is to be told of it, "" for nothing."""
        return WARNING_RANDOM if self.of_runs and self.kind == "random" else ""

    def says(self, recipe: StudyRecipe) -> str:
        """In one line."""
        limited = f", of {self.limit} rows" if self.limit else ""
        longer = ", 25 times as long since rows are interpolated" if self.scale > 1 else ""
        if self.kind == "folds":
            return f"{self.folds} folds of {f'blocks of lumisections{longer}' if self.of_runs else 'images'}{limited}"
        if self.of_runs:
            return (f"blocks of lumisections{longer}" if self.kind == "blocks" else "rows drawn at random") + limited
        validation, test = recipe.shares
        return f"images drawn, {1 - validation - test:.0%} train, {validation:.0%} validation, {test:.0%} test{limited}"


def division(recipe: StudyRecipe, images: Images, split: str, folds: int, limit: int) -> Division:
    """What the flags ask for. Raises InputError for folds or a split that do not exist."""
    if folds < 0 or folds == 1 or limit < 0:
        raise InputError(f"{folds} folds and a limit of {limit}: take 2 folds or more (0 for none) and a limit of 0 or more")
    folds = folds or recipe.folds or (Split().folds if split == "folds" else 0)
    if recipe.task != "two_runs":
        return Division(False, "folds" if folds else "random", folds, limit)
    kind = "folds" if folds else split
    Split(kind, folds=folds or Split().folds)
    return Division(True, kind, folds, limit, INTERPOLATED_SCALE if interpolated(images) else 1)


def interpolated(images: Images) -> bool:
    """Whether maps of counts hold some that are not whole, as rows made of others do."""
    rows = np.unique(np.linspace(0, images.shape[0] - 1, LOOKED_AT).astype(np.int64))
    some = images.read(rows)
    return not np.array_equal(some, np.floor(some))


def parts_of(images: Images, recipe: StudyRecipe, how: Division, fold: int = 0) -> Parts:
    """Rows of each part. Raises InputError if one of them lacks a class."""
    rows = limited(images, how)
    part = _of_runs(images, how, fold)[rows] if how.of_runs else _of_images(len(rows), recipe.shares, how.folds, fold)
    parts = Parts(*(rows[part == wanted] for wanted in (Part.TRAIN, Part.VALIDATION, Part.TEST)))
    for name, of_part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        missing = sorted(set(range(len(images.classes))) - set(images.labels[of_part].tolist()))
        if missing:
            need = f"; blocks of lumisections need {CYCLE * how.scale} of each run" if how.of_runs else ""
            names = ", ".join(images.classes[k] for k in missing)
            raise InputError(f"the {name} part has no image of {names}: give more images, or a larger --limit{need}")
    return parts


def limited(images: Images, how: Division) -> np.ndarray:
    """Rows, ascending: all, or so many: of images blocks of neighbours, drawn; of runs evenly spaced, whose splits stay."""
    n = images.shape[0]
    if not how.limit or how.limit >= n:
        return np.arange(n)
    if np.array_equal(images.group, np.arange(n)):
        length = max(1, min(BLOCK, how.limit // 32))
        first = np.random.default_rng([SPLIT_SEED, 1]).permutation(n // length) * length
        return np.sort((first[:, None] + np.arange(length)).ravel()[: how.limit])
    return np.unique(np.linspace(0, n - 1, how.limit).astype(np.int64))


def _of_runs(images: Images, how: Division, fold: int) -> np.ndarray:
    """Part of every row. A random split draws lumisections of the same number in several runs apart."""
    found = np.zeros(images.shape[0], dtype=np.uint8)
    for k in range(len(images.classes)):
        of_run = images.labels == k
        split = Split(how.kind, seed=k, fold=fold, folds=how.folds or Split().folds)
        found[of_run] = split.assign(images.group[of_run], how.scale)
    return found


def _of_images(n: int, shares: tuple[float, float], folds: int, fold: int) -> np.ndarray:
    """Part of each of n rows, drawn: by shares of validation and test, or fold `fold` for test and the next for validation.

    Where there are two folds the other one has both to teach and to choose: a fifth of it is validation.
    """
    place = np.empty(n)
    place[np.random.default_rng([SPLIT_SEED, 0]).permutation(n)] = (np.arange(n) + 0.5) / n
    if folds:
        of_fold = np.floor(place * folds)
        test, validation = of_fold == fold, of_fold == (fold + 1) % folds
        validation &= (folds > 2) | (place * folds % 1 < 0.2)
    else:
        test, validation = place < shares[1], place >= 1 - shares[0]
    return np.select([test, validation], [Part.TEST, Part.VALIDATION], Part.TRAIN)


def stretches(images: Images, rows: np.ndarray, scale: int, length: int = 10) -> np.ndarray:
    """What is one observation for an interval: a row of images; of runs a stretch of ten lumisections, which share luminosity.

    Returns a number for each row, (n,), from 0. rows: ascending.
    """
    group, label = images.group[rows], images.labels[rows]
    if np.array_equal(images.group, np.arange(images.shape[0])):
        return np.arange(len(rows))
    _, number = np.unique(np.stack([label, (group - 1) // (length * scale)]), axis=1, return_inverse=True)
    return number.ravel()
