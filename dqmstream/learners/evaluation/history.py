"""The history: one JSON line for each experience, and the results computed from it. It can be read without dqmstream."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.by_last import Temper
from dqmstream.learners.evaluation.history_line import EVERY_LENGTH, LENGTHS, BaselineEntry, ByLast, HistoryLine
from dqmstream.learners.evaluation.json_lines import append_line, keep_lines, read_lines
from dqmstream.learners.evaluation.metrics import (
    Matrix,
    any_time,
    average,
    averages,
    backward_transfer,
    forgetting,
    forgetting_initial,
    gap_closed,
    interval_of_share,
    matrix,
    min_accuracy_per_experience,
    min_accuracy_within_training,
    weighted_average,
    weighted_forgetting,
    worst_case,
)

FEW_TESTED = 10
"""Test lumisections below which a run counts as short in figures: its accuracy moves in steps of more than .1."""


class History:
    """The lines of history.jsonl.

    A line grows with the number of runs (1000 lines hold 200 MB of numbers), so only the newest is kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hold(self.lines)

    def _hold(self, lines: list[HistoryLine]) -> None:
        self._count = len(lines)
        self.newest = lines[-1:]
        """The last line, in a list; empty before there is one."""

    def __len__(self) -> int:
        return self._count

    @property
    def lines(self) -> list[HistoryLine]:
        """All lines, read from the file."""
        return read_history(self.path) if self.path.exists() else []

    def append(self, line: HistoryLine) -> None:
        """Write a line; it is on the disk when this returns."""
        append_line(self.path, line.to_json())
        self._count += 1
        self.newest = [line]

    def cut(self, count: int) -> None:
        """Keep the first `count` lines: those past the last checkpoint will be written again."""
        keep_lines(self.path, count)
        self._hold(self.lines)


def read_history(path: Path) -> list[HistoryLine]:
    """The lines of a history file, without a last line that a crash cut off. Raises StateError for any other file."""
    try:
        return [HistoryLine.from_json(line) for line in read_lines(path)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(f"{path} is no history: {error}") from error


def newest_average(lines: list[HistoryLine]) -> float | None:
    """Mean accuracy over the runs seen, after the newest experience; None before the second."""
    row = lines[-1].accuracy if lines else None
    return None if row is None else float(np.mean(row))


def newest_by_last(lines: list[HistoryLine]) -> dict[str, float | None]:
    """The same where the last n lumisections name the run, by n as text; None where it was not measured."""
    found = {n: _of_last(lines[-1], n) if lines else None for n in LENGTHS}
    return {str(n): None if one is None else float(np.mean(one.accuracy)) for n, one in found.items()}


def newest_temper(lines: list[HistoryLine]) -> Temper | None:
    """How sure sums over the last lumisections are, after the newest experience; None where it was not measured."""
    for one in lines[-1].by_last if lines else ():
        if one.correlation is not None and one.calibration.temperature is not None:
            return Temper(one.calibration.temperature, one.correlation)
    return None


def results(lines: list[HistoryLine]) -> dict[str, Any]:
    """The results of a stream, ready for JSON: matrices, figures, baselines and cost.

    Figures of the learner are those of `figures`; baseline_figures has the same for each baseline. What an older history lacks
    is None. by_run: accuracy of each experience after the last with its 95 % interval and its number of test lumisections.
    short_runs: how many of these numbers are below 10. by_last: figures by the last n lumisections (`figures_by_last`) by n as
    text, of the learner with both matrices.
    """
    accuracy, area = _matrix(lines, "accuracy"), _matrix(lines, "auc")
    baselines = {name: baseline_lines(lines, name) for name in (lines[-1].baselines if lines else {})}
    beside = {name: figures(of_it) for name, of_it in baselines.items()}
    own = figures(lines)
    for n, found in own["by_last"].items():
        found["accuracy_matrix"], found["auc_matrix"] = (matrix_by_last(lines, int(n), name) for name in ("accuracy", "auc"))
    last = lines[-1] if lines else None
    return {
        "runs": [line.run for line in lines],
        "accuracy_matrix": accuracy,
        "auc_matrix": area,
        "auc_fixed_matrix": _matrix(lines, "auc_fixed"),
        "by_run": _by_run(lines),
        "short_runs": sum(number < FEW_TESTED for number in tested(lines) or ()),
        **{name: own.pop(name) for name in ("average_accuracy", "average_auc", "forgetting", "forgetting_initial")},
        **own,
        "baselines": {name: found["average_accuracy"] for name, found in beside.items()},
        "baselines_auc": {name: found["average_auc"] for name, found in beside.items()},
        "baselines_forgetting": {name: found["forgetting"] for name, found in beside.items()},
        "baseline_figures": beside,
        "memory_bytes": (last and last.memory_bytes) or 0,
        "state_bytes": (last and last.state_bytes) or 0,
        "seconds": round(sum(sum(line.seconds.values()) for line in lines), 4),
        "seconds_by_kind": seconds_by_kind(lines),
    }


def figures(lines: list[HistoryLine]) -> dict[str, Any]:
    """The figures of a learner or a baseline, one number (or None) each, `calibration` at the last evaluation, and `by_last`.

    Most are defined in `learners.evaluation.metrics`. new_run_auc: mean of the AUC of the new-run score over the runs that were
    new. average_accuracy and forgetting count every run alike; those by_lumisection count a run by its test lumisections.
    flops: None where a line lacks them. by_last: `figures_by_last` by n as text.
    """
    accuracy, counts = _matrix(lines, "accuracy"), tested(lines)
    watched = [line.watched.lowest for line in lines if line.watched is not None]
    per_experience, within = min_accuracy_per_experience(accuracy), min_accuracy_within_training(watched)
    noticed = [line.before.new_run_auc for line in lines if line.before is not None]
    calibration = lines[-1].calibration if lines else None
    flops = [line.flops for line in lines if line.flops is not None]
    return {
        "average_accuracy": average(accuracy),
        "average_accuracy_by_lumisection": weighted_average(accuracy, counts) if counts else None,
        "forgetting_by_lumisection": weighted_forgetting(accuracy, counts) if counts else None,
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
        "calibration": asdict(calibration) if calibration is not None else None,
        "flops": float(sum(flops)) if len(flops) == len(lines) else None,
        "by_last": {str(n): figures_by_last(lines, n) for n in EVERY_LENGTH},
    }


def tested(lines: list[HistoryLine]) -> list[int] | None:
    """Test lumisections of each experience; None where a line does not tell."""
    found = [line.lumisections for line in lines]
    return [one["test"] for one in found if one] if all(found) else None


def _by_run(lines: list[HistoryLine]) -> list[dict[str, Any]]:
    accuracy, counts = (lines[-1].accuracy if lines else None), tested(lines)
    if accuracy is None or counts is None or len(accuracy) != len(counts):
        return []
    entries = []
    for line, share, number in zip(lines, accuracy, counts, strict=True):
        low, high = interval_of_share(share, number)
        entries.append({"run": line.run, "test_lumisections": number, "accuracy": share, "low": low, "high": high})
    return entries


def figures_by_last(lines: list[HistoryLine], n: int) -> dict[str, Any]:
    """Figures by the last n lumisections, by the names of `figures`; None where they were not measured.

    summed: how many lumisections were summed in the mean. correlation: of neighbours (`learners.evaluation.by_last`). With
    n = 1 the figures are those of `figures`.
    """
    accuracy = matrix_by_last(lines, n, "accuracy")
    last = _of_last(lines[-1], n) if lines else None
    single = lines[-1].calibration if lines and n == 1 else None
    calibration = last.calibration if last is not None else single
    return {
        "average_accuracy": average(accuracy),
        "average_auc": average(matrix_by_last(lines, n, "auc")),
        "forgetting": forgetting(accuracy),
        "summed": last.summed if last is not None else 1.0 if n == 1 and average(accuracy) is not None else None,
        "correlation": last.correlation if last is not None else None,
        "calibration": asdict(calibration) if calibration is not None else None,
    }


def matrix_by_last(lines: list[HistoryLine], n: int, name: Literal["accuracy", "auc"]) -> Matrix:
    """The matrix of accuracy or AUC by the last n lumisections; with n = 1 that of single lumisections."""
    if n == 1:
        return _matrix(lines, name)
    found = [_of_last(line, n) for line in lines]
    return matrix([None if one is None else one.row(name, t + 1) for t, one in enumerate(found)])


def _of_last(line: HistoryLine, n: int) -> ByLast | None:
    return next((one for one in line.by_last if one.lumisections == n), None)


def baseline_lines(lines: list[HistoryLine], name: str) -> list[HistoryLine]:
    """The history of a baseline that ran beside the learner.

    It has no `before` and no `watched`, and its seconds are those of its learning alone.
    """
    return [_baseline_line(line, name) for line in lines]


def _baseline_line(line: HistoryLine, name: str) -> HistoryLine:
    entry = line.baselines.get(name) or BaselineEntry()
    return replace(
        line,
        accuracy=entry.accuracy,
        auc=entry.auc,
        auc_fixed=entry.auc_fixed,
        calibration=entry.calibration,
        by_last=entry.by_last,
        before=None,
        watched=None,
        memory_bytes=line.memory_bytes if entry.memory_bytes is None else entry.memory_bytes,
        state_bytes=line.state_bytes if entry.state_bytes is None else entry.state_bytes,
        flops=line.baseline_flops.get(name),
        seconds={"learn": line.seconds.get(f"baseline.{name}", 0.0)},
    )


@dataclass(frozen=True)
class BesideJoint:
    """A learner compared with naive and joint learning of the same runs, after each run.

    naive, own, joint: average accuracies. share: closed share of the gap (`learners.evaluation.metrics.gap_closed`). last: the
    share after the last run.
    """

    runs: list[int]
    naive: list[float | None]
    own: list[float | None]
    joint: list[float | None]
    share: list[float | None]

    @property
    def last(self) -> float | None:
        return self.share[-1] if self.share else None


def beside_joint(naive: list[HistoryLine], own: list[HistoryLine], joint: list[HistoryLine]) -> BesideJoint:
    """Compare three histories of the same runs in the same order, up to the end of the shortest.

    Raises InputError where their runs, or the order of these, differ.
    """
    length = min(len(naive), len(own), len(joint))
    runs, *others = ([line.run for line in lines[:length]] for lines in (own, naive, joint))
    if any(other != runs for other in others):
        raise InputError("the histories are not of the same runs in the same order: replay all of them from one ledger")
    low, mine, high = (averages(_matrix(lines[:length], "accuracy")) for lines in (naive, own, joint))
    return BesideJoint(runs, low, mine, high, gap_closed(low, mine, high))


def seconds_by_kind(lines: list[HistoryLine]) -> dict[str, float]:
    """Seconds of all lines, by kind of work."""
    kinds = sorted({kind for line in lines for kind in line.seconds})
    return {kind: round(sum(line.seconds.get(kind, 0.0) for line in lines), 4) for kind in kinds}


def _matrix(lines: list[HistoryLine], name: Literal["accuracy", "auc", "auc_fixed"]) -> Matrix:
    return matrix([getattr(line, name) for line in lines])
