"""The history: a JSON line an experience, and the results that follow from it. It can be read without dqmstream."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.metrics import (
    Matrix,
    any_time,
    average,
    averages,
    backward_transfer,
    forgetting,
    forgetting_initial,
    gap_closed,
    matrix,
    min_accuracy_per_experience,
    min_accuracy_within_training,
    worst_case,
)
from dqmstream.storage.locks import naming, sync_folder, write_atomically

Line = dict[str, Any]


class History:
    """Lines of history.jsonl. A line: experience, run, rows of the matrices, loss curve, baselines, cost
    (`learners.stream.experience`).

    Rows grow with the runs, 1000 runs' to 200 MB of numbers, so of the lines only the newest is kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._take(self.lines)

    def _take(self, lines: list[Line]) -> None:
        self._count = len(lines)
        self.newest = lines[-1:]
        """The last line, in a list; empty before there is one."""

    def __len__(self) -> int:
        return self._count

    @property
    def lines(self) -> list[Line]:
        """All of them, from the file."""
        return read_history(self.path) if self.path.exists() else []

    def append(self, line: Line) -> None:
        append_line(self.path, line)
        self._count += 1
        self.newest = [line]

    def cut(self, count: int) -> None:
        """Keep the first `count` lines: what lies past the last checkpoint will be written again."""
        kept = self.lines[:count]
        write_lines(self.path, kept)
        self._take(kept)


def append_line(path: Path, line: Line) -> None:
    """Write a line behind the others of a file, on the disk before this returns."""
    is_new = not path.exists()
    with naming(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def write_lines(path: Path, lines: list[Line]) -> None:
    """Put these lines in the place of a file's own; a file that does not exist is not made."""
    if path.exists():
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_history(path: Path) -> list[Line]:
    """Lines of a history file; a last line that a crash cut off is passed over. Raises StateError for anything else."""
    try:
        text = path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is no history: {error}") from error


def prequential_results(path: Path) -> dict[str, Any] | None:
    """What the windows of a windows.jsonl (`learners.stream.windows`) came to; None where it does not exist, or none was
    judged.

    accuracy: of all their lumisections, as named on arrival; accuracy_sliding: of those of the last windows. known: share of
    those whose run the learner had begun to learn by then; accuracy_known: of these. no_change: accuracy of always naming
    the run whose label came last, which needs no look at a map; guessing: of drawing one of the runs known.
    """
    lines = read_history(path) if path.exists() else []
    if not lines:
        return None
    size, right, no_change = (np.array([line[name] for line in lines]) for name in ("lumisections", "right", "no_change"))
    known = np.array([line["known"] for line in lines])
    classes = np.array([line["classes"] for line in lines])
    return {
        "windows": len(lines),
        "lumisections": int(size.sum()),
        "accuracy": lines[-1]["cumulative"],
        "accuracy_sliding": lines[-1]["sliding"],
        "known": float(size[known].sum() / size.sum()),
        "accuracy_known": float(right[known].sum() / size[known].sum()) if known.any() else None,
        "no_change": float(no_change.sum() / size.sum()),
        "guessing": float((size * known / classes).sum() / size.sum()),
        "by_window": lines,
    }


def newest_average(lines: list[Line]) -> float | None:
    """Mean accuracy over the runs seen, after the newest experience; None before the second."""
    row = lines[-1]["accuracy"] if lines else None
    return None if row is None else float(np.mean(row))


def results(lines: list[Line]) -> dict[str, Any]:
    """What a stream came to, from its history: matrices, figures of `learners.evaluation.metrics`, baselines and cost.

    figures: `figures` of the learner; baseline_figures: the same of each baseline beside it. new_run_auc: mean over the runs of
    how well each was told from the known ones before it was learnt. calibration: at the last evaluation. flops: None where a
    line does not give them. What an older history lacks is None.
    """
    accuracy, area = _matrix(lines, "accuracy"), _matrix(lines, "auc")
    baselines = {name: baseline_lines(lines, name) for name in (lines[-1]["baselines"] if lines else {})}
    beside = {name: figures(of_it) for name, of_it in baselines.items()}
    own = figures(lines)
    last: Mapping[str, Any] = lines[-1] if lines else {}
    return {
        "runs": [line["run"] for line in lines],
        "accuracy_matrix": accuracy,
        "auc_matrix": area,
        "auc_fixed_matrix": _matrix(lines, "auc_fixed"),
        **{name: own.pop(name) for name in ("average_accuracy", "average_auc", "forgetting", "forgetting_initial")},
        **own,
        "baselines": {name: found["average_accuracy"] for name, found in beside.items()},
        "baselines_auc": {name: found["average_auc"] for name, found in beside.items()},
        "baselines_forgetting": {name: found["forgetting"] for name, found in beside.items()},
        "baseline_figures": beside,
        "memory_bytes": last.get("memory_bytes", 0),
        "state_bytes": last.get("state_bytes", 0),
        "seconds": round(sum(sum(line["seconds"].values()) for line in lines), 4),
        "seconds_by_kind": _seconds_by_kind(lines),
    }


def figures(lines: list[Line]) -> dict[str, Any]:
    """The figures that a learner and a baseline have alike, one number (or None) each, and `calibration`."""
    accuracy = _matrix(lines, "accuracy")
    watched = [{int(i): lowest for i, lowest in line["watched"]["lowest"]} for line in lines if line.get("watched")]
    per_experience, within = min_accuracy_per_experience(accuracy), min_accuracy_within_training(watched)
    noticed = [line["before"]["new_run_auc"] for line in lines if line.get("before")]
    flops = [line["flops"] for line in lines if line.get("flops") is not None]
    return {
        "average_accuracy": average(accuracy),
        "average_auc": average(_matrix(lines, "auc")),
        "average_auc_fixed": average(_matrix(lines, "auc_fixed")),
        "any_time_accuracy": any_time(accuracy),
        "forgetting": forgetting(accuracy),
        "forgetting_initial": forgetting_initial(accuracy),
        "backward_transfer": backward_transfer(accuracy),
        "min_accuracy_per_experience": per_experience,
        "worst_case_per_experience": worst_case(accuracy, per_experience),
        "min_accuracy_within_training": within,
        "worst_case_within_training": worst_case(accuracy, within),
        "new_run_auc": float(np.mean(noticed)) if noticed else None,
        "calibration": lines[-1].get("calibration") if lines else None,
        "flops": float(sum(flops)) if len(flops) == len(lines) else None,
    }


def baseline_lines(lines: list[Line], name: str) -> list[Line]:
    """The history that a baseline beside the learner would have written, as far as it is known.

    It was neither watched nor asked before learning; its seconds are those of its learning.
    """
    unknown = dict.fromkeys(("accuracy", "auc", "auc_fixed", "calibration", "before", "watched"))
    return [
        line
        | unknown
        | (line["baselines"].get(name) or {})
        | {
            "flops": line.get("baseline_flops", {}).get(name),
            "seconds": {"learn": line["seconds"].get(f"baseline.{name}", 0.0)},
        }
        for line in lines
    ]


@dataclass(frozen=True)
class BesideJoint:
    """A learner between the naive learner and the joint bound, after each run.

    naive, own, joint: average accuracies. share: of the gap closed (`learners.evaluation.metrics.gap_closed`). last: of the
    last run.
    """

    runs: list[int]
    naive: list[float | None]
    own: list[float | None]
    joint: list[float | None]
    share: list[float | None]

    @property
    def last(self) -> float | None:
        return self.share[-1] if self.share else None


def beside_joint(naive: list[Line], own: list[Line], joint: list[Line]) -> BesideJoint:
    """Pair three histories of the same runs in the same order, as far as the shortest goes.

    Raises InputError where they name other runs, or the same in another order.
    """
    length = min(len(naive), len(own), len(joint))
    runs, *others = ([int(line["run"]) for line in lines[:length]] for lines in (own, naive, joint))
    if any(other != runs for other in others):
        raise InputError("the histories are not of the same runs in the same order: replay all of them from one ledger")
    low, mine, high = (averages(_matrix(lines[:length], "accuracy")) for lines in (naive, own, joint))
    return BesideJoint(runs, low, mine, high, gap_closed(low, mine, high))


def _seconds_by_kind(lines: list[Line]) -> dict[str, float]:
    kinds = sorted({kind for line in lines for kind in line["seconds"]})
    return {kind: round(sum(line["seconds"].get(kind, 0.0) for line in lines), 4) for kind in kinds}


def _matrix(lines: list[Line], name: str) -> Matrix:
    return matrix([line.get(name) for line in lines])
