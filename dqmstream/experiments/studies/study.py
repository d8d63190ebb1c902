"""A study: a recipe, the images that it is trained on, and the settings of this try."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.experiments.studies.recipes import TASK_NAMES, StudyRecipe, recipe, refuse_augmentation
from dqmstream.experiments.studies.row_split import RowSplit, plan_split, split_rows
from dqmstream.experiments.studies.training.batches import Images
from dqmstream.experiments.studies.training.plan import SIZES, TrainingPlan
from dqmstream.storage.images.source import open_images


@dataclass(frozen=True)
class StudySettings:
    """What a user may ask of a study.

    epochs, folds: 0 for the recipe's. limit: maximum number of rows, 0 for all. size: "study", as in the recipe, or "tiny".
    split: of runs, as in `learners.splits`. changes: to the recipe's training plan.
    """

    seeds: tuple[int, ...] = (0,)
    epochs: int = 0
    limit: int = 0
    size: str = "study"
    folds: int = 0
    split: str = "blocks"
    augment: tuple[str, ...] = ()
    weights: Path | None = None
    device: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, of: StudyRecipe) -> TrainingPlan:
        """The recipe's plan with these changes. Raises InputError for what makes no sense."""
        if self.size not in SIZES:
            raise InputError(f"there is no size {self.size!r}; choose one of {', '.join(SIZES)}")
        plan = of.plan.tiny() if self.size == "tiny" else of.plan
        given = {"epochs": self.epochs, "augment": self.augment}
        plan = plan.changed({name: value for name, value in given.items() if value} | dict(self.changes))
        if of.task == "two_runs":
            refuse_augmentation(plan)
        return plan


@dataclass(frozen=True, eq=False)
class Study:
    """A recipe with the images that it is trained on."""

    recipe: StudyRecipe
    plan: TrainingPlan
    images: Images
    split: RowSplit
    settings: StudySettings
    paths: tuple[Path, ...]

    @property
    def folds(self) -> range:
        return range(max(1, self.split.folds))

    def about(self) -> dict[str, Any]:
        """What the figures of all seeds and folds depend on. Raises InputError for a file of weights that does not exist."""
        weights = self.settings.weights
        if weights is not None and not weights.is_file():
            raise InputError(f"weights {weights} do not exist: give a safetensors file")
        return {
            "recipe": self.recipe.name,
            "plan": self.plan.model_dump(mode="json"),
            "size": self.settings.size,
            "division": asdict(self.split),
            "shares": list(self.recipe.shares),
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "",
            "images": self.images.digest,
        }


def prepare(name: str, paths: list[Path], settings: StudySettings) -> Study:
    """Open the images and check that they suit the recipe. Raises InputError before anything is computed."""
    of = recipe(name)
    plan = settings.plan(of)
    images = open_images(paths)
    channels, height, width = of.shape
    shape = images.shape[1:]
    if shape[1:] != (height, width) or channels not in (None, shape[0]):
        raise InputError(
            f"{name} takes {TASK_NAMES[of.task]} images of {channels or 'any number of'} x {height} x {width}, these have "
            f"{' x '.join(map(str, shape))}: choose another recipe or other files"
        )
    if len(images.classes) < 2:
        raise InputError(f"all images are of one class ({images.classes[0]}), a study needs two: give files of both")
    split = plan_split(of, images, settings.split, settings.folds, settings.limit)
    study = Study(of, plan, images, split, settings, tuple(paths))
    for fold in study.folds:
        split_rows(images, of, split, fold)
    return study
