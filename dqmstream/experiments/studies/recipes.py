"""The recipes of the earlier studies, what they published, and what they left unsaid: `recipes.toml`, checked."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dqmstream.errors import InputError
from dqmstream.experiments.studies.training.plan import Plan
from dqmstream.learners.gradient.augmentation import REFUSED

Task = Literal["two_runs", "electron_photon", "quark_gluon"]

SHAPES: dict[str, tuple[int | None, int, int]] = {
    "two_runs": (None, 64, 72),
    "electron_photon": (2, 32, 32),
    "quark_gluon": (3, 125, 125),
}
"""(C, H, W) of each task's images; None where any number will do."""

WHAT = {"two_runs": "two runs", "electron_photon": "electron/photon", "quark_gluon": "quark/gluon"}


class Figure(BaseModel):
    """A published figure. part: "train", "validation", "test", or "" where the publication does not say."""

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
    """One recipe.

    study: which of the five, or "planned". shares: of validation and test, of images that are independent of each other; of
    runs the split is `learners.splits`. folds: of a K-fold, 0 for one split. published: empty where nothing was. unsaid: what
    the publication leaves open; chosen: what is done here in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: Task
    study: str
    title: str
    plan: Plan
    shares: tuple[float, float] = (0.1, 0.1)
    folds: int = Field(0, ge=0)
    published: tuple[Figure, ...] = ()
    remark: str = ""
    unsaid: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_one_piece(self) -> StudyRecipe:
        if self.task == "two_runs":
            refuse_moves(self.plan)
        if not (min(self.shares) > 0 and sum(self.shares) < 1):
            raise ValueError(f"shares {self.shares} leave nothing to train on, or nothing to judge")
        return self

    @property
    def shape(self) -> tuple[int | None, int, int]:
        """(C, H, W) of its images."""
        return SHAPES[self.task]

    @property
    def says(self) -> str:
        """What was published, in one line."""
        figures = ", ".join(map(str, self.published))
        return " ".join(part for part in (figures, self.remark) if part) or "none given"


def refuse_moves(plan: Plan) -> None:
    """Raise InputError if a plan for maps of occupancy moves what tells runs apart."""
    for move in plan.augment:
        why = REFUSED["flip" if move in ("flip", "rotate") else "roll"]
        raise InputError(f"augmentation {move!r} is not for maps of occupancy: {why}")


@cache
def recipes() -> dict[str, StudyRecipe]:
    """All of them by name, in the order of the file."""
    text = resources.files(__package__).joinpath("recipes.toml").read_text()
    return {name: _checked(name, values) for name, values in tomllib.loads(text).items()}


def recipe(name: str) -> StudyRecipe:
    """The recipe of that name. Raises InputError for one that does not exist."""
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
    """A recipe in words: network, preprocessing, training, split."""
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
    stop = f", stopped after {plan.patience} without a better one" if plan.patience else ""
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
    "standard": "mean 0, deviation 1",
    "none": "as they are",
}


def page() -> str:
    """docs/studies.md: every recipe, its published figures, and what each leaves unsaid."""
    blocks = [_PREFACE]
    for one in recipes().values():
        said = described(one)
        lines = [f"## `{one.name}`", "", f"{one.title} ({WHAT[one.task]}; {one.study}).", ""]
        lines += [f"- {what}: {text}" for what, text in said.items()]
        lines.append(f"- published: {one.says}")
        lines += [f"- unsaid: {'; '.join(one.unsaid)}"] if one.unsaid else []
        lines += [f"- chosen here: {'; '.join(one.chosen)}"] if one.chosen else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


_PREFACE = """# The earlier studies

Written from `dqmstream/experiments/studies/recipes.toml` by `python -m dqmstream.experiments.studies`; a test compares.

    dqmstream benchmark --recipe NAME --data FILE [FILE ...] --out DIR

trains a recipe on files that you have and sets its figures beside the published ones. No publication here gives an interval, a
seed or the number of events that a figure was taken on, unless a recipe says so; a difference from it of a few thousandths of
AUC can be chance, and a larger one can be another split. What is the same for all recipes here, whatever the publication did:

- the weights that are judged are those of the epoch with the best AUC on the validation part; test is looked at afterwards
- numbers of the preprocessing (the maximum) come from the train part alone
- images are split at random, by a seed of its own that is the same for all training seeds; validation is taken beside test, so
  a study's 90/10 is 80/10/10 here, and its 80/20 is 70/10/20
- lumisections of runs are split by blocks of consecutive ones with gaps between (`dqmstream.learners.splits`): a random split
  of interpolated rows puts neighbours of each test row in the training part
- intervals are of 95 %, by the test part's images (of runs: by stretches of ten lumisections, which share their luminosity)"""
