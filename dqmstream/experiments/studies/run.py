"""Running a study: the missing trainings and baselines are computed, and the result is written.

    OUT/NAME/seed0-fold1-1a2b3c4d/  result.json, scores.safetensors, best.safetensors; during training checkpoint.safetensors
    OUT/NAME/baselines-fold1-1a2b3c4d.json
    OUT/NAME/results.json, table.md

A study that was stopped continues with the epoch that it was in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
from dqmstream.experiments.cells.store import CellStore
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.experiments.simulator.images import ideal_of
from dqmstream.experiments.studies.cells import BaselineCell, TrainingCell
from dqmstream.experiments.studies.row_split import split_rows
from dqmstream.experiments.studies.study import Study
from dqmstream.experiments.studies.training.checkpoints import LAST
from dqmstream.experiments.studies.training.trainer import EpochProgress
from dqmstream.storage.locks import write_atomically


def run_study(
    study: Study, out: Path, progress: Callable[[str, EpochProgress], None] = lambda cell, epoch: None
) -> dict[str, Any]:
    """Compute what is missing of a study; returns, and writes as results.json, all that its table needs.

    progress: called with a cell's name after each batch. Trainings run one after another in this process, since they report
    progress, write checkpoints and may share a GPU; the first error ends the study. Raises InputError if the folder cannot be
    written or a network does not fit the images.
    """
    store = CellStore(out / study.recipe.name)
    about = study.about()
    cells: list[TrainingCell | BaselineCell] = []
    for fold in study.folds:
        rows = split_rows(study.images, study.recipe, study.split, fold)
        cells.append(BaselineCell(study, rows, fold, about))
        cells += [TrainingCell(study, rows, seed, fold, about, store.folder, progress) for seed in study.settings.seeds]

    def remove_checkpoint(done: Progress[TrainingCell | BaselineCell]) -> None:
        if done.newest is not None and isinstance(cell := done.newest[0], TrainingCell):
            (store.folder / cell.name / LAST).unlink(missing_ok=True)

    records = run_cells(cells, store, Workers(), keep_going=False, progress=remove_checkpoint)
    result = {
        "recipe": study.recipe.name,
        "about": about,
        "published": [figure.model_dump() for figure in study.recipe.published],
        "rows": {name: len(of_part) for name, of_part in asdict(cells[-1].rows).items()},
        "classes": list(study.images.classes),
        "ideal_auc": ideal_of(list(study.paths)),
        "warning": study.split.warning,
        "cells": [record for cell, record in records.items() if isinstance(cell, TrainingCell)],
        "baselines": [record for cell, record in records.items() if isinstance(cell, BaselineCell)],
    }
    write_atomically(store.folder / "results.json", json.dumps(nan_as_null(result), indent=1, allow_nan=False).encode())
    return result
