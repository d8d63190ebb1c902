"""The history: a JSON line an experience, and the results that follow from it. It can be read without dqmstream."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.evaluation import Matrix, average, forgetting, forgetting_initial, matrix
from dqmstream.storage.locks import write_atomically

Line = dict[str, Any]


class History:
    """Lines of history.jsonl. A line: experience, run, rows of R and AUC, loss curve, baselines, cost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = read_history(path) if path.exists() else []

    def append(self, line: Line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def cut(self, count: int) -> None:
        """Keep the first `count` lines: what lies past the last checkpoint will be written again."""
        self.lines = self.lines[:count]
        if self.path.exists():
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())


def read_history(path: Path) -> list[Line]:
    """Lines of a history file; a last line that a crash cut off is passed over. Raises StateError for anything else."""
    try:
        text = path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is no history: {error}") from error


def newest_average(lines: list[Line]) -> float | None:
    """Mean accuracy over the runs seen, after the newest experience; None before the second."""
    row = lines[-1]["accuracy"] if lines else None
    return None if row is None else float(np.mean(row))


def results(lines: list[Line]) -> dict[str, Any]:
    """What a stream came to, from its history: matrices, averages, forgetting, baselines, bytes and seconds."""
    accuracy, area = _matrix(lines, lambda line: line["accuracy"]), _matrix(lines, lambda line: line["auc"])
    baselines = {name: baseline_results(lines, name) for name in (lines[-1]["baselines"] if lines else {})}
    last: Mapping[str, Any] = lines[-1] if lines else {}
    return {
        "runs": [line["run"] for line in lines],
        "accuracy_matrix": accuracy,
        "auc_matrix": area,
        "average_accuracy": average(accuracy),
        "average_auc": average(area),
        "forgetting": forgetting(accuracy),
        "forgetting_initial": forgetting_initial(accuracy),
        "baselines": {name: beside["accuracy"] for name, beside in baselines.items()},
        "baselines_auc": {name: beside["auc"] for name, beside in baselines.items()},
        "baselines_forgetting": {name: beside["forgetting"] for name, beside in baselines.items()},
        "memory_bytes": last.get("memory_bytes", 0),
        "state_bytes": last.get("state_bytes", 0),
        "seconds": round(sum(sum(line["seconds"].values()) for line in lines), 3),
    }


def baseline_results(lines: list[Line], name: str) -> dict[str, float | None]:
    """Accuracy, AUC and forgetting of a baseline that ran beside."""
    accuracy = _matrix(lines, lambda line: line["baselines"][name] and line["baselines"][name]["accuracy"])
    area = _matrix(lines, lambda line: line["baselines"][name] and line["baselines"][name]["auc"])
    return {"accuracy": average(accuracy), "auc": average(area), "forgetting": forgetting(accuracy)}


def _matrix(lines: list[Line], row: Callable[[Line], list[float] | None]) -> Matrix:
    return matrix([row(line) for line in lines])
