"""Cells of a study: the training of one seed and fold, and the baselines of one fold."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.experiments.provenance import commit, versions
from dqmstream.experiments.studies.baselines import baselines, score_rows
from dqmstream.experiments.studies.intervals import accuracy_interval, auc_interval
from dqmstream.experiments.studies.row_split import observations
from dqmstream.experiments.studies.study import Study
from dqmstream.experiments.studies.training.batches import SplitRows
from dqmstream.experiments.studies.training.trainer import EpochProgress, Training, train
from dqmstream.learners.evaluation.roc import one_against_rest


@dataclass(frozen=True, eq=False)
class TrainingCell:
    """The training of a study's network with one seed on one fold.

    rows: of that fold. about: what the figures of all seeds and folds depend on. folder: that of the study. A cell is
    recognised by its name, which has a digest of `about`; the code does not count, since a training takes hours.
    """

    study: Study
    rows: SplitRows
    seed: int
    fold: int
    about: Mapping[str, Any]
    folder: Path
    progress: Callable[[str, EpochProgress], None]

    @property
    def name(self) -> str:
        return f"seed{self.seed}-fold{self.fold}-{digest(self.about)}"

    @property
    def file(self) -> str:
        return f"{self.name}/result.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "fold": self.fold}

    def compute(self) -> Record:
        """Train and evaluate, or continue a training that was stopped. Writes scores.safetensors beside the record."""
        began = time.perf_counter()
        settings, folder = self.study.settings, self.folder / self.name
        training = Training(self.study.plan, self.seed, settings.device, settings.weights, {**self.about, "fold": self.fold})
        trained = train(self.study.images, self.rows, training, folder, lambda epoch: self.progress(self.name, epoch))
        arrays = {f"{part}_rows": rows for part, rows in trained.rows.items()}
        arrays |= {f"{part}_log_probability": trained.log_probability[part] for part in trained.rows}
        save_file(arrays, folder / "scores.safetensors")
        record: Record = nan_as_null({
            "seed": self.seed,
            "fold": self.fold,
            "figures": {part: figures(self.study, rows, trained.log_probability[part]) for part, rows in trained.rows.items()},
            "best_epoch": trained.best_epoch,
            "history": trained.history,
            "parameters": trained.parameters,
            "taken": trained.taken,
            "device": trained.device,
            "seconds": round(time.perf_counter() - began, 3),
            "versions": versions(),
            "commit": commit(),
        })  # fmt: skip
        return record


@dataclass(frozen=True, eq=False)
class BaselineCell:
    """The baselines of a study on one fold; they have no seed. rows, about: as in `TrainingCell`."""

    study: Study
    rows: SplitRows
    fold: int
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"baselines-fold{self.fold}-{digest(self.about)}"

    @property
    def file(self) -> str:
        return f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"fold": self.fold}

    def compute(self) -> Record:
        """Fit and evaluate the baselines."""
        images = self.study.images
        by_name = {
            name: {
                part: figures(self.study, rows, score_rows(images, rows, scorer))
                for part, rows in (("validation", self.rows.validation), ("test", self.rows.test))
            }
            for name, scorer in baselines(images, self.rows.train, self.study.recipe.task).items()
        }
        record: Record = nan_as_null({"fold": self.fold, "figures": by_name})
        return record


def digest(about: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of what a study's figures depend on."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def figures(study: Study, rows: np.ndarray, log_probability: np.ndarray) -> dict[str, Any]:
    """Accuracy and AUC of rows, with intervals. log_probability: (n, classes).

    For more than two classes the AUC is the mean of one against the rest, without interval.
    """
    labels, unit = study.images.labels[rows], observations(study.images, rows, study.split.scale)
    accuracy = accuracy_interval(log_probability.argmax(axis=1) == labels, unit)
    result = {"accuracy": asdict(accuracy), "n": len(rows), "observations": len(np.unique(unit))}
    if log_probability.shape[1] == 2:
        score = log_probability[:, 1] - log_probability[:, 0]
        positive, negative = labels == 1, labels == 0
        return result | {"auc": asdict(auc_interval(score[positive], score[negative], (unit[positive], unit[negative])))}
    return result | {"auc": {"estimate": one_against_rest(log_probability, labels), "low": None, "high": None}}
