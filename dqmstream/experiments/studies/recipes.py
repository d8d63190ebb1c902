"""Recipes of the earlier studies, read from `recipes.toml`: what was published and what was not stated."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dqmstream.errors import InputError
from dqmstream.experiments.studies.training.plan import TrainingPlan

Task = Literal["two_runs", "electron_photon", "quark_gluon"]

SHAPES: dict[str, tuple[int | None, int, int]] = {
    "two_runs": (None, 64, 72),
    "electron_photon": (2, 32, 32),
    "quark_gluon": (3, 125, 125),
}
"""(C, H, W) of the images of each task; None for any number."""

_MOVES_COUNTS = "it moves counts to other channels, and runs are told apart by which channels changed"
REFUSED_AUGMENTATIONS = {
    "flip": f"{_MOVES_COUNTS}; the detector has no mirror symmetry",
    "rotate": f"{_MOVES_COUNTS}; the detector has no such symmetry",
    "shift": _MOVES_COUNTS,
}
"""Augmentations that are not valid for occupancy maps, and why."""

TASK_NAMES = {"two_runs": "two runs", "electron_photon": "electron/photon", "quark_gluon": "quark/gluon"}


class PublishedFigure(BaseModel):
    """A published figure. part: "train", "validation", "test", or "" if not stated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["AUC", "accuracy"]
    value: float = Field(ge=0, le=1)
    part: Literal["train", "validation", "test", ""] = ""
    about: str = ""

    def __str__(self) -> str:
        near = "about " if self.about == "about" else ""
        more = f" ({self.about})" if self.about not in ("", "about") else ""
        return f"{self.what} {near}{f'{self.value:.4f}'.rstrip('0').rstrip('.')}{f' {self.part}' if self.part else ''}{more}"


class StudyRecipe(BaseModel):
    """A recipe.

    study: which of the five studies, or "planned". shares: of validation and test, for images; runs are split by
    `learners.splits`. folds: of a K-fold, 0 for a single split. not_stated: what the publication leaves open. chosen: what is
    done here instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: Task
    study: str
    title: str
    plan: TrainingPlan
    shares: tuple[float, float] = (0.1, 0.1)
    folds: int = Field(0, ge=0)
    published: tuple[PublishedFigure, ...] = ()
    remark: str = ""
    not_stated: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> StudyRecipe:
        if self.task == "two_runs":
            refuse_augmentation(self.plan)
        if not (min(self.shares) > 0 and sum(self.shares) < 1):
            raise ValueError(f"shares {self.shares} leave nothing to train on, or nothing to test")
        return self

    @property
    def shape(self) -> tuple[int | None, int, int]:
        """(C, H, W) of its images."""
        return SHAPES[self.task]

    @property
    def published_text(self) -> str:
        """The published figures in one line."""
        figures = ", ".join(map(str, self.published))
        return " ".join(part for part in (figures, self.remark) if part) or "none given"


def refuse_augmentation(plan: TrainingPlan) -> None:
    """Raise InputError if a plan for occupancy maps has augmentations, which would move the channels that tell runs apart."""
    for move in plan.augment:
        raise InputError(f"augmentation {move!r} is not valid for occupancy maps: {REFUSED_AUGMENTATIONS[move]}")


@cache
def recipes() -> dict[str, StudyRecipe]:
    """All recipes by name, in the order of the file."""
    text = resources.files(__package__).joinpath("recipes.toml").read_text()
    return {name: _checked(name, values) for name, values in tomllib.loads(text).items()}


def recipe(name: str) -> StudyRecipe:
    """The recipe of that name. Raises InputError if there is none."""
    if name not in recipes():
        raise InputError(f"there is no study {name!r}; choose one of {', '.join(recipes())}")
    return recipes()[name]


def _checked(name: str, values: dict[str, Any]) -> StudyRecipe:
    try:
        return StudyRecipe.model_validate({"name": name, **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"recipe {name}, {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def described(one: StudyRecipe) -> dict[str, str]:
    """A recipe in words: network, input, training and split."""
    plan = one.plan
    network = plan.model if plan.model == "moe_vit" else f"{plan.model}, {plan.size}"
    if plan.model == "convnet":
        pool = " + max-pool" if plan.pooling else ""
        wide = "/".join(map(str, plan.convolutions))
        network = f"CNN: {len(plan.convolutions)} convolutions + ReLU{pool} ({wide}), {len(plan.hidden) + 1} fully connected"
        network += ", Keras's initial weights" if plan.initial == "glorot" else ""
    if plan.dropout:
        network += f", dropout {plan.dropout:g}"
    prepared = _PREPARED[plan.normalise]
    if plan.pad:
        prepared += f", zero-padded to {plan.pad[0]}x{plan.pad[1]}"
    if plan.resize:
        prepared += f", resized to {plan.resize}x{plan.resize}"
    if plan.augment:
        prepared += f"; {', '.join(plan.augment)}"
    loss = {"softmax": "softmax, cross-entropy", "sigmoid": "sigmoid, binary cross-entropy"}[plan.loss]
    stop = f", stopped after {plan.patience} epochs without a better one" if plan.patience else ""
    validation, test = one.shares
    split = f"{one.folds}-fold" if one.folds else f"{1 - validation - test:.0%} / {validation:.0%} / {test:.0%}"
    return {
        "network": network,
        "input": prepared,
        "training": f"{loss}, {plan.optimizer.capitalize()} {plan.lr:g}, batch {plan.batch}, {plan.epochs} epochs{stop}",
        "split": "blocks of consecutive lumisections" if one.task == "two_runs" and not one.folds else split,
    }


_PREPARED = {
    "maximum": "divided by the maximum",
    "unit": "scaled to 0-1",
    "standard": "mean 0, standard deviation 1",
    "none": "unchanged",
}


def page() -> str:
    """The text of docs/studies.md: every recipe, its published figures, and what was not stated."""
    blocks = [_PREFACE]
    for one in recipes().values():
        words = described(one)
        lines = [f"## `{one.name}`", "", f"{one.title} ({TASK_NAMES[one.task]}; {one.study}).", ""]
        lines += [f"- {what}: {text}" for what, text in words.items()]
        lines.append(f"- published: {one.published_text}")
        lines += [f"- not stated: {'; '.join(one.not_stated)}"] if one.not_stated else []
        lines += [f"- chosen here: {'; '.join(one.chosen)}"] if one.chosen else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


_PREFACE = """# The earlier studies

Generated from `dqmstream/experiments/studies/recipes.toml` by `python -m dqmstream.experiments.studies`; a test compares.

    dqmstream benchmark --recipe NAME --data FILE [FILE ...] --out DIR

trains a recipe on your own files and prints its figures beside the published ones. Unless a recipe says so, the publication
gives no interval, no seed and no number of events for its figures: a difference of a few thousandths of AUC can be chance, and
a larger one can come from another split. For all recipes here, whatever the publication did:

- the weights of the epoch with the best validation AUC are evaluated; the test part is used afterwards only
- the preprocessing (the maximum) is fitted on the train part only
- images are split at random, in the same way for all training seeds; validation is split off besides test, so a study's 90/10
  is 80/10/10 here, and its 80/20 is 70/10/20
- lumisections of runs are split in blocks of consecutive ones with gaps between them (`dqmstream.learners.splits`): a random
  split of interpolated rows puts neighbours of each test row into the train part
- intervals are 95 %, from the images of the test part (for runs: from blocks of ten lumisections, which share their luminosity)

The trainings of a study run one after another in one process and continue with the epoch in which they were stopped. A finished
training is reused as long as recipe, settings, weights and images are the same."""
