"""A study on the user's files: every fold and seed is a cell with a folder of its own, saved when it is finished.

    OUT/NAME/seed0-fold1-1a2b3c4d/  result.json, scores.safetensors, best.safetensors; while it trains checkpoint.safetensors
    OUT/NAME/baselines-fold1-1a2b3c4d.json
    OUT/NAME/results.json, table.md

A study that was stopped goes on with the epoch that its cell was in.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.json_numbers import plain
from dqmstream.experiments.provenance import commit, versions
from dqmstream.experiments.simulator.images import ideal_of
from dqmstream.experiments.studies.baselines import baselines, scored
from dqmstream.experiments.studies.intervals import accuracy_interval, auc_interval
from dqmstream.experiments.studies.parts import Division, division, parts_of, stretches
from dqmstream.experiments.studies.recipes import WHAT, StudyRecipe, recipe, refuse_moves
from dqmstream.experiments.studies.training.batches import Images, Parts
from dqmstream.experiments.studies.training.plan import SIZES, Plan
from dqmstream.learners.evaluation.evaluator import one_against_rest
from dqmstream.storage.images.source import open_images
from dqmstream.storage.locks import write_atomically

Progress = Callable[[str, Any], None]
"""Called with a cell's name and `experiments.studies.training.trainer.Progress`."""


@dataclass(frozen=True)
class Options:
    """What may be asked of a study. epochs, folds: 0 for the recipe's. limit: rows at most, 0 for all.

    size: "study", as the recipe has it, or "tiny". split: of runs. changes: to the recipe's plan.
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

    def plan(self, of: StudyRecipe) -> Plan:
        """The recipe's plan, as these options change it. Raises InputError for what makes no sense."""
        if self.size not in SIZES:
            raise InputError(f"there is no size {self.size!r}; choose one of {', '.join(SIZES)}")
        plan = of.plan.tiny() if self.size == "tiny" else of.plan
        given = {"epochs": self.epochs, "augment": self.augment}
        plan = plan.changed({name: value for name, value in given.items() if value} | dict(self.changes))
        if of.task == "two_runs":
            refuse_moves(plan)
        return plan


@dataclass(frozen=True, eq=False)
class Study:
    """A recipe with the images that it is to be tried on, and how."""

    recipe: StudyRecipe
    plan: Plan
    images: Images
    how: Division
    options: Options
    paths: tuple[Path, ...]

    @property
    def folds(self) -> range:
        return range(max(1, self.how.folds))


def prepare(name: str, paths: list[Path], options: Options) -> Study:
    """Open the images and check that they are the recipe's. Raises InputError, before anything is computed."""
    of = recipe(name)
    plan = options.plan(of)
    images = open_images(paths)
    channels, height, width = of.shape
    shape = images.shape[1:]
    if shape[1:] != (height, width) or channels not in (None, shape[0]):
        raise InputError(
            f"{name} is of {WHAT[of.task]} images of {channels or 'any number of'} x {height} x {width}, and these are of "
            f"{' x '.join(map(str, shape))}: choose another recipe or other files"
        )
    if len(images.classes) < 2:
        raise InputError(f"all images are of one class ({images.classes[0]}), and a study tells two apart: give files of both")
    how = division(of, images, options.split, options.folds, options.limit)
    for fold in range(max(1, how.folds)):
        parts_of(images, of, how, fold)
    return Study(of, plan, images, how, options, tuple(paths))


def run_study(study: Study, out: Path, progress: Progress = lambda cell, how: None) -> dict[str, Any]:
    """Compute what is missing of a study; returns, and writes as results.json, all that a table needs.

    Raises InputError if the folder cannot be written, or a network does not fit.
    """
    folder = out / study.recipe.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    about = _about(study)
    cells, beside = [], []
    for fold in study.folds:
        parts = parts_of(study.images, study.recipe, study.how, fold)
        name = f"baselines-fold{fold}-{_digest(about)}.json"
        beside.append(_kept(folder / name) or _baselines(study, parts, fold, folder / name))
        for seed in study.options.seeds:
            cells.append(_cell(study, parts, seed, fold, about, folder, progress))
    result = {
        "recipe": study.recipe.name,
        "about": about,
        "published": [figure.model_dump() for figure in study.recipe.published],
        "rows": {name: len(rows) for name, rows in asdict(parts).items()},
        "classes": list(study.images.classes),
        "ideal_auc": ideal_of(list(study.paths)),
        "warning": study.how.warning,
        "cells": cells,
        "baselines": beside,
    }
    write_atomically(folder / "results.json", json.dumps(plain(result), indent=1, allow_nan=False).encode())
    return result


def _about(study: Study) -> dict[str, Any]:
    """What the figures of all seeds and folds depend on."""
    weights = study.options.weights
    if weights is not None and not weights.is_file():
        raise InputError(f"weights {weights} do not exist: give a safetensors file")
    return {
        "recipe": study.recipe.name,
        "plan": study.plan.model_dump(mode="json"),
        "size": study.options.size,
        "division": asdict(study.how),
        "shares": list(study.recipe.shares),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "",
        "images": study.images.digest,
    }


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def _cell(
    study: Study, parts: Parts, seed: int, fold: int, about: Mapping[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Train and judge one seed and fold, or take what is there."""
    name = f"seed{seed}-fold{fold}-{_digest(about)}"
    path = folder / name / "result.json"
    if (kept := _kept(path)) is not None:
        return kept
    from dqmstream.experiments.studies.training.checkpoints import LAST
    from dqmstream.experiments.studies.training.trainer import Training, fit

    began = time.perf_counter()
    options = study.options
    training = Training(study.plan, seed, options.device, options.weights, {**about, "fold": fold})
    fitted = fit(study.images, parts, training, path.parent, lambda how: progress(name, how))
    result = {
        "seed": seed,
        "fold": fold,
        "figures": {part: figures(study, rows, fitted.log_probability[part]) for part, rows in fitted.rows.items()},
        "best_epoch": fitted.best_epoch,
        "history": fitted.history,
        "parameters": fitted.parameters,
        "taken": fitted.taken,
        "device": fitted.device,
        "seconds": round(time.perf_counter() - began, 3),
        "versions": versions(),
        "commit": commit(),
    }
    arrays = {f"{part}_rows": rows for part, rows in fitted.rows.items()}
    arrays |= {f"{part}_log_probability": fitted.log_probability[part] for part in fitted.rows}
    save_file(arrays, path.parent / "scores.safetensors")
    write_atomically(path, json.dumps(plain(result), indent=1, allow_nan=False).encode())
    (path.parent / LAST).unlink(missing_ok=True)
    return _kept(path) or {}


def _baselines(study: Study, parts: Parts, fold: int, path: Path) -> dict[str, Any]:
    found = {
        name: {
            part: figures(study, rows, scored(study.images, rows, scorer))
            for part, rows in (("validation", parts.validation), ("test", parts.test))
        }
        for name, scorer in baselines(study.images, parts.train, study.recipe.task).items()
    }
    write_atomically(path, json.dumps(plain({"fold": fold, "figures": found}), indent=1, allow_nan=False).encode())
    return _kept(path) or {}


def _kept(path: Path) -> dict[str, Any] | None:
    """What was finished before. Raises StateError if it is damaged."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} cannot be read: {error}; delete it, and it is computed again") from error
    return found


def figures(study: Study, rows: np.ndarray, log_probability: np.ndarray) -> dict[str, Any]:
    """Accuracy and AUC of some rows with their intervals; of more than two classes the AUC is the mean, without one."""
    labels, unit = study.images.labels[rows], stretches(study.images, rows, study.how.scale)
    accuracy = accuracy_interval(log_probability.argmax(axis=1) == labels, unit)
    score = log_probability[:, 1] - log_probability[:, 0]
    mine, other = labels == 1, labels == 0
    found = {"accuracy": asdict(accuracy), "n": len(rows), "observations": len(np.unique(unit))}
    if log_probability.shape[1] == 2:
        return found | {"auc": asdict(auc_interval(score[mine], score[other], (unit[mine], unit[other])))}
    value = one_against_rest(log_probability, labels)
    return found | {"auc": {"estimate": value, "low": None, "high": None}}
