"""The figures of a finished cell: run by run, its cost, and the code that computed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqmstream.learners.evaluation.history import figures
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.metrics import drops, matrix


@dataclass(frozen=True)
class CellFigures:
    """Figures of a finished cell, with the names of the columns of `results.parquet`.

    run: numbers of the runs; accuracy_by_run and auc_by_run have the same order, forgetting_by_run lacks the last run.
    accuracy, auc, forgetting, any_time_accuracy, new_run_auc, ece, ece_calibrated: over all runs, None if undefined. worth:
    number of independent lumisections behind the accuracy. lumisections_trained: number of lumisections in all trainings,
    repeats counted; like learn_seconds None for a bound. memory_bytes, state_bytes: after the last run.
    """

    run: list[int]
    accuracy_by_run: list[float]
    auc_by_run: list[float]
    forgetting_by_run: list[float]
    accuracy: float
    auc: float
    forgetting: float | None
    any_time_accuracy: float | None
    new_run_auc: float | None
    ece: float | None
    ece_calibrated: float | None
    worth: float
    lumisections_trained: int | None
    flops: float | None
    memory_bytes: int | None
    state_bytes: int | None
    seconds: float
    learn_seconds: float | None
    versions: dict[str, str]
    commit: str
    code: str


def figures_of(record: Mapping[str, Any]) -> CellFigures:
    """The figures of a record of `BenchmarkCell.compute`, or of `parquet.read_cells`, which has them as they are."""
    if "figures" in record:
        return CellFigures(**record["figures"])
    lines = [HistoryLine.from_json(line) for line in record["lines"]]
    found = figures(lines)
    last, calibration = lines[-1], found["calibration"] or {}
    return CellFigures(
        run=[line.run for line in lines],
        accuracy_by_run=last.accuracy or [],
        auc_by_run=last.auc or [],
        forgetting_by_run=lost(lines).tolist(),
        accuracy=found["average_accuracy"],
        auc=found["average_auc"],
        forgetting=found["forgetting"],
        any_time_accuracy=found["any_time_accuracy"],
        new_run_auc=found["new_run_auc"],
        ece=calibration.get("ece"),
        ece_calibrated=calibration.get("ece_calibrated"),
        worth=record["worth"],
        lumisections_trained=sum(line.samples or 0 for line in lines) if lines[0].samples is not None else None,
        flops=found["flops"],
        memory_bytes=last.memory_bytes,
        state_bytes=last.state_bytes,
        seconds=record["seconds"],
        learn_seconds=sum(line.seconds["learn"] for line in lines) if lines[0].seconds else None,
        versions=record["versions"],
        commit=record["commit"],
        code=record["code"],
    )


def lost(lines: Sequence[HistoryLine]) -> np.ndarray:
    """Loss of accuracy of each run but the last since its best evaluation: (runs - 1,), empty for fewer than three runs."""
    return np.array(drops(matrix([line.accuracy for line in lines]), max))
