"""The figures of a finished cell: run by run, its cost, and the code that computed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dqmstream.learners.evaluation.history import figures, matrix_by_last
from dqmstream.learners.evaluation.history_line import LENGTHS, HistoryLine
from dqmstream.learners.evaluation.metrics import drops, matrix


@dataclass(frozen=True)
class FiguresByLast:
    """Figures of a finished cell where the last n lumisections name the run, by the names of `CellFigures`.

    lumisections: n. summed: how many were summed in the mean. A value by run is None where the neighbours of its lumisections
    were not evaluated; worth is None then.
    """

    lumisections: int
    accuracy_by_run: list[float | None]
    auc_by_run: list[float | None]
    forgetting_by_run: list[float | None]
    accuracy: float
    auc: float | None
    forgetting: float | None
    summed: float
    ece: float | None
    ece_calibrated: float | None
    worth: float | None


@dataclass(frozen=True)
class CellFigures:
    """Figures of a finished cell, with the names of the columns of `results.parquet`.

    run: numbers of the runs; accuracy_by_run and auc_by_run have the same order, forgetting_by_run lacks the last run.
    accuracy, auc, forgetting, any_time_accuracy, new_run_auc, ece, ece_calibrated: over all runs, None if undefined. worth:
    number of independent lumisections behind the accuracy. lumisections_trained: number of lumisections in all trainings,
    repeats counted; like learn_seconds None for a bound. memory_bytes, state_bytes: after the last run. by_last: figures by the
    last n lumisections, for several n; empty in a cell of an older version.
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
    by_last: list[FiguresByLast] = field(default_factory=list)


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
        by_last=_by_last(lines, found["by_last"], record.get("worth_by_last", {})),
    )


def _by_last(lines: list[HistoryLine], found: Mapping[str, Any], worth: Mapping[str, float]) -> list[FiguresByLast]:
    figures = []
    for n in LENGTHS:
        of_n = found[str(n)]
        if of_n["average_accuracy"] is None:
            continue
        accuracy, area = (matrix_by_last(lines, n, name) for name in ("accuracy", "auc"))
        calibration = of_n["calibration"]
        figures.append(
            FiguresByLast(
                lumisections=n,
                accuracy_by_run=accuracy[-1],
                auc_by_run=area[-1],
                forgetting_by_run=[_loss([row[i] for row in accuracy]) for i in range(len(lines) - 1)],
                accuracy=of_n["average_accuracy"],
                auc=of_n["average_auc"],
                forgetting=of_n["forgetting"],
                summed=of_n["summed"],
                ece=calibration["ece"],
                ece_calibrated=calibration["ece_calibrated"],
                worth=worth.get(str(n)),
            )
        )
    return figures


def _loss(column: Sequence[float | None]) -> float | None:
    """Best earlier value of a column of the matrix minus its last one; None where either is missing."""
    before = [value for value in column[:-1] if value is not None]
    last = column[-1]
    return max(before) - last if before and last is not None else None


def lost(lines: Sequence[HistoryLine]) -> np.ndarray:
    """Loss of accuracy of each run but the last since its best evaluation: (runs - 1,), empty for fewer than three runs."""
    return np.array(drops(matrix([line.accuracy for line in lines]), max))
