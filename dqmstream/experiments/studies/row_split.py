"""The split of a study's rows into train, validation and test part: blocks of lumisections of runs, random images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.studies.recipes import StudyRecipe
from dqmstream.experiments.studies.training.batches import BLOCK, Images, SplitRows
from dqmstream.learners.splits import CYCLE, INTERPOLATED_SCALE, WARNING_RANDOM, Part, Split

SPLIT_SEED = 20240229
"""Seed of random splits. It differs from the training seeds, so that all of them are tested on the same images."""

LOOKED_AT = 64
"""Number of lumisections read to find whether a file was interpolated (counts are whole numbers)."""


@dataclass(frozen=True)
class RowSplit:
    """How the rows are split.

    kind: of `learners.splits.Split` for runs, "random" or "folds" for images. folds: of a K-fold, 0 for a single split.
    limit: maximum number of rows, 0 for all. scale: factor on the length of blocks of lumisections, 25 for interpolated rows.

    The field names are part of the digest in the folder names of finished trainings.
    """

    of_runs: bool
    kind: str
    folds: int = 0
    limit: int = 0
    scale: int = 1

    @property
    def warning(self) -> str:
        """What the user must know about it, "" for nothing."""
        return WARNING_RANDOM if self.of_runs and self.kind == "random" else ""

    def describe(self, recipe: StudyRecipe) -> str:
        """The split in one line."""
        limited = f", of {self.limit} rows" if self.limit else ""
        longer = ", 25 times as long since rows are interpolated" if self.scale > 1 else ""
        if self.kind == "folds":
            return f"{self.folds} folds of {f'blocks of lumisections{longer}' if self.of_runs else 'images'}{limited}"
        if self.of_runs:
            return (f"blocks of lumisections{longer}" if self.kind == "blocks" else "random rows") + limited
        validation, test = recipe.shares
        return f"random images, {1 - validation - test:.0%} train, {validation:.0%} validation, {test:.0%} test{limited}"


def plan_split(recipe: StudyRecipe, images: Images, split: str, folds: int, limit: int) -> RowSplit:
    """The split for these options. Raises InputError for a number of folds or a split that does not exist."""
    if folds < 0 or folds == 1:
        raise InputError(f"--folds {folds}: take 2 folds or more, or 0 for a single split")
    if limit < 0:
        raise InputError(f"--limit {limit}: take 0 (no limit) or more")
    folds = folds or recipe.folds or (Split().folds if split == "folds" else 0)
    if recipe.task != "two_runs":
        return RowSplit(False, "folds" if folds else "random", folds, limit)
    kind = "folds" if folds else split
    Split(kind, folds=folds or Split().folds)
    return RowSplit(True, kind, folds, limit, INTERPOLATED_SCALE if interpolated(images) else 1)


def interpolated(images: Images) -> bool:
    """Whether some counts are not whole numbers, as in rows interpolated between others."""
    rows = np.unique(np.linspace(0, images.shape[0] - 1, LOOKED_AT).astype(np.int64))
    counts = images.read(rows)
    return not np.array_equal(counts, np.floor(counts))


def split_rows(images: Images, recipe: StudyRecipe, split: RowSplit, fold: int = 0) -> SplitRows:
    """Rows of each part. Raises InputError if a part lacks a class."""
    rows = limited_rows(images, split)
    if split.of_runs:
        part = _parts_of_runs(images, split, fold)[rows]
    else:
        part = _parts_of_images(len(rows), recipe.shares, split.folds, fold)
    by_part = {wanted: rows[part == wanted] for wanted in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    for wanted, of_part in by_part.items():
        missing = sorted(set(range(len(images.classes))) - set(images.labels[of_part].tolist()))
        if missing:
            need = f"; blocks of lumisections need {CYCLE * split.scale} of each run" if split.of_runs else ""
            names = ", ".join(images.classes[k] for k in missing)
            raise InputError(
                f"the {wanted.name.lower()} part has no image of {names}: give more images, or a larger --limit{need}"
            )
    return SplitRows(by_part[Part.TRAIN], by_part[Part.VALIDATION], by_part[Part.TEST])


def limited_rows(images: Images, split: RowSplit) -> np.ndarray:
    """Ascending rows, all or at most `split.limit`: random blocks of neighbouring images, or evenly spaced lumisections."""
    n = images.shape[0]
    if not split.limit or split.limit >= n:
        return np.arange(n)
    if np.array_equal(images.group, np.arange(n)):
        length = max(1, min(BLOCK, split.limit // 32))
        first = np.random.default_rng([SPLIT_SEED, 1]).permutation(n // length) * length
        return np.sort((first[:, None] + np.arange(length)).ravel()[: split.limit])
    return np.unique(np.linspace(0, n - 1, split.limit).astype(np.int64))


def _parts_of_runs(images: Images, split: RowSplit, fold: int) -> np.ndarray:
    """Part of every row, (n,). A random split draws differently for each run."""
    parts = np.zeros(images.shape[0], dtype=np.uint8)
    for k in range(len(images.classes)):
        of_run = images.labels == k
        of_this_run = Split(split.kind, seed=k, fold=fold, folds=split.folds or Split().folds)
        parts[of_run] = of_this_run.assign(images.group[of_run], split.scale)
    return parts


def _parts_of_images(n: int, shares: tuple[float, float], folds: int, fold: int) -> np.ndarray:
    """Random part of each of n rows, (n,). shares: of validation and test, where there are no folds.

    With folds, fold `fold` is test and the next one validation; of two folds the other one is train, and a fifth of it
    validation.
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


def observations(images: Images, rows: np.ndarray, scale: int, length: int = 10) -> np.ndarray:
    """Number of the independent observation that each row belongs to, (n,), from 0. rows: ascending.

    An image is an observation of its own. Lumisections of a run share their luminosity: `length` consecutive ones are one
    observation, times `scale` for interpolated rows.
    """
    group, label = images.group[rows], images.labels[rows]
    if np.array_equal(images.group, np.arange(images.shape[0])):
        return np.arange(len(rows))
    _, number = np.unique(np.stack([label, (group - 1) // (length * scale)]), axis=1, return_inverse=True)
    return number.ravel()
