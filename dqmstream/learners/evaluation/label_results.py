"""The results of a stream in the task of labels: matrices over periods, forgetting and transfer of accuracy and of AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dqmstream.learners.evaluation.history import baseline_lines, seconds_by_kind
from dqmstream.learners.evaluation.history_line import HistoryLine, PeriodEntry
from dqmstream.learners.evaluation.metrics import (
    Matrix,
    any_time,
    average,
    backward_transfer,
    forgetting,
    forward_transfer,
    matrix,
)

CHANCE = 0.5
"""AUC of a classifier that knows nothing."""


def label_results(lines: Sequence[HistoryLine]) -> dict[str, Any]:
    """The results, ready for JSON. A period is named by its runs; matrices have a row and a column each.

    Figures of the learner are those of `label_figures`; baseline_figures has the same for each closed form beside it.
    """
    closed = closed_lines(lines)
    last = lines[-1] if lines else None
    names = closed[-1].baselines if closed else {}
    # Before a period is learnt only the learner itself is evaluated.
    beside = {name: label_figures(baseline_lines(list(closed), name)) | {"forward_transfer_auc": None} for name in names}
    entries = [line.period for line in lines if line.period is not None]
    return {
        "task": "labels",
        "runs": [line.run for line in lines],
        "periods": [entry.runs for entry in entries if entry.number is not None],
        "waiting_runs": entries[-1].runs if entries and entries[-1].number is None else [],
        "lumisections": {name: sum(getattr(entry, name) for entry in entries) for name in ("good", "faulty", "unlabelled")},
        "accuracy_matrix": accuracy_matrix(closed),
        "auc_matrix": auc_matrix(closed),
        **label_figures(closed),
        "baselines": {name: found["average_accuracy"] for name, found in beside.items()},
        "baselines_auc": {name: found["average_auc"] for name, found in beside.items()},
        "baselines_forgetting": {name: found["forgetting"] for name, found in beside.items()},
        "baseline_figures": beside,
        "memory_bytes": (last and last.memory_bytes) or 0,
        "state_bytes": (last and last.state_bytes) or 0,
        "seconds": round(sum(sum(line.seconds.values()) for line in lines), 4),
        "seconds_by_kind": seconds_by_kind(list(lines)),
    }


def label_figures(closed: Sequence[HistoryLine]) -> dict[str, Any]:
    """Figures of lines that end a period, one number (or None) each, and `calibration` at the last evaluation.

    They are defined in `learners.evaluation.metrics`, of accuracy and, with _auc, of AUC.
    """
    accuracy, area = accuracy_matrix(closed), auc_matrix(closed)
    calibration = closed[-1].calibration if closed else None
    before = [entry_of(line).auc_before for line in closed]
    return {
        "average_accuracy": average(accuracy),
        "average_auc": average(area),
        "any_time_accuracy": any_time(accuracy),
        "any_time_auc": any_time(area),
        "forgetting": forgetting(accuracy),
        "forgetting_auc": forgetting(area),
        "backward_transfer": backward_transfer(accuracy),
        "backward_transfer_auc": backward_transfer(area),
        "forward_transfer_auc": forward_transfer(before, CHANCE),
        "calibration": asdict(calibration) if calibration is not None else None,
    }


def closed_lines(lines: Sequence[HistoryLine]) -> list[HistoryLine]:
    """The lines of runs that end a period."""
    return [line for line in lines if line.period is not None and line.period.number is not None]


def entry_of(line: HistoryLine) -> PeriodEntry:
    """The period's entry of a line. Raises ValueError for a line of the other task."""
    if line.period is None:
        raise ValueError(f"run {line.run} was not learnt in the task of labels")
    return line.period


def accuracy_matrix(closed: Sequence[HistoryLine]) -> Matrix:
    """R[t, i]: accuracy on period i after period t."""
    return matrix([line.accuracy for line in closed])


def auc_matrix(closed: Sequence[HistoryLine]) -> Matrix:
    """R[t, i]: AUC on period i after period t."""
    return matrix([line.auc for line in closed])
