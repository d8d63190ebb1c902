"""Further figures of each learner and baseline: any-time and worst-case accuracy, calibration, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dqmstream.experiments.report.learner_records import LearnerRecord, baselines
from dqmstream.learners.evaluation.history import beside_joint, figures, results
from dqmstream.learners.evaluation.history_line import HistoryLine

LOWER, UPPER = "naive", "joint"
"""Strategies between which the gap closed by a learner is measured, if both have learnt the same runs."""


@dataclass(frozen=True)
class FurtherFigures:
    """Figures of a learner or baseline, as defined in `learners.evaluation.metrics`; None if the history does not hold one.

    worst_case: at the ends of experiences; worst_case_within_training: also during each training, if it was watched.
    gap_closed: 0 for the naive learner, 1 for the joint one. ece: expected calibration error; ece_calibrated: at `temperature`.
    learn_s: seconds of learning alone. flops: of learning.
    """

    name: str
    any_time_accuracy: float | None
    worst_case: float | None
    worst_case_within_training: float | None
    backward_transfer: float | None
    gap_closed: float | None
    new_run_auc: float | None
    ece: float | None
    ece_calibrated: float | None
    temperature: float | None
    learn_s: float
    flops: float | None


def further_figures(records: Sequence[LearnerRecord]) -> list[FurtherFigures]:
    """One entry for each learner, then one for each baseline, in the order of `summary.summarise`."""
    everyone = [(record.name, record.lines) for record in records]
    everyone += [(name, lines) for name, _, lines in baselines(records)]
    return [_figures_of(name, lines, records) for name, lines in everyone]


def _figures_of(name: str, lines: list[HistoryLine], records: Sequence[LearnerRecord]) -> FurtherFigures:
    own = figures(lines)
    calibration = own["calibration"] or {}
    return FurtherFigures(
        name=name,
        any_time_accuracy=own["any_time_accuracy"],
        worst_case=own["worst_case_per_experience"],
        worst_case_within_training=own["worst_case_within_training"],
        backward_transfer=own["backward_transfer"],
        gap_closed=_gap_closed(lines, records),
        new_run_auc=own["new_run_auc"],
        ece=calibration.get("ece"),
        ece_calibrated=calibration.get("ece_calibrated"),
        temperature=calibration.get("temperature"),
        learn_s=results(lines)["seconds_by_kind"].get("learn", 0.0),
        flops=own["flops"],
    )


def _gap_closed(lines: list[HistoryLine], records: Sequence[LearnerRecord]) -> float | None:
    """Compare with the first naive and the first joint learner of the same runs in the same order; None if one is missing."""
    runs = [line.run for line in lines]
    bounds = {record.strategy: record.lines for record in reversed(records) if record.runs == runs}
    if LOWER not in bounds or UPPER not in bounds:
        return None
    return beside_joint(bounds[LOWER], lines, bounds[UPPER]).last
