"""Panel: one section a learner, with its matrices, curves and table of runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dqmstream.experiments.page import number, picture
from dqmstream.experiments.report import plots
from dqmstream.experiments.report.curves import Roc, by_last_curve, rocs, square
from dqmstream.experiments.report.learner_records import LearnerRecord
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs
from dqmstream.experiments.report.summary import guessing_interval
from dqmstream.experiments.statistics import Interval
from dqmstream.learners.evaluation.history import baseline_lines, results
from dqmstream.learners.evaluation.history_line import EVERY_LENGTH

CAPTURE = 0.95
"""Share of a run's own lumisections that are attributed to it where its false-positive rate is given."""


def learners_panel(report: ReportInputs) -> Panel:
    sections = [_section(report, place, record) for place, record in enumerate(report.learners, start=1)]
    return Panel(
        "learners.html.j2",
        {"learners": sections, "shown_runs": report.shown_runs, "capture": CAPTURE},
        [Link(f"learner-{place}", f"Learner {record.name}") for place, record in enumerate(report.learners, start=1)],
        {
            "learners": {
                record.name: results(record.lines)
                | {"prequential": record.prequential, "alarms": record.alarms, "law": record.law}
                for record in report.learners
            },
            "per_run": {section["record"].name: section["per_run"] for section in sections},
        },
    )


def _section(report: ReportInputs, place: int, record: LearnerRecord) -> dict[str, Any]:
    """One learner's section. place: 1, 2, ..., which keeps file names apart where names differ in odd characters only."""
    curves = rocs(record)
    prefix = f"learner-{place:02d}-{re.sub(r'[^A-Za-z0-9._-]', '-', record.name)}"
    shown = [
        *_matrices(report, record, prefix),
        *_by_last(report, record, prefix),
        *_roc_curves(report, record, prefix, curves),
        *_windows(report, record, prefix),
        *_losses(report, record, prefix),
    ]
    report.step("draw")
    return {
        "record": record,
        "pictures": shown,
        "trained": any(line.loss for line in record.lines),
        "behind": len(record.experiences) - len(record.lines),
        "per_run": runs_table(record, curves),
    }


def _matrices(report: ReportInputs, record: LearnerRecord, prefix: str) -> list[dict[str, Any]]:
    if len(record.lines) < 2:
        return []
    found, shown = results(record.lines), []
    for what, key in (("accuracy", "accuracy_matrix"), ("AUC", "auc_matrix")):
        file = report.folder.add(f"{prefix}-{what.lower()}.png")
        plots.draw_matrix(file, square(found[key]), record.runs, what)
        mean = number(found["average_accuracy" if what == "accuracy" else "average_auc"])
        alt = f"Matrix of the {what} of {record.name}: {len(record.lines)} runs, average of the last row {mean}."
        shown.append(picture(file, alt))
    return shown


def _by_last(report: ReportInputs, record: LearnerRecord, prefix: str) -> list[dict[str, Any]]:
    beside = {name: baseline_lines(record.lines, name) for name in sorted(record.lines[-1].baselines)}
    curves = [by_last_curve(name, lines) for name, lines in {record.name: record.lines, **beside}.items()]
    if not curves[0].accuracy:
        return []
    file = report.folder.add(f"{prefix}-last.png")
    plots.draw_by_last(file, [curve for curve in curves if curve.accuracy], _guessing(record))
    words = ", ".join(f"{value.estimate:.3f} by {n}" for n, value in curves[0].accuracy.items())
    return [picture(file, f"Accuracy of {record.name} where the last n lumisections name the run: {words}.")]


def _guessing(record: LearnerRecord) -> dict[int, Interval]:
    """Range of guessing by the last n: sums overlap, so n lumisections count as one. Without ends where not all were summed."""
    whole = all(one.experiences is None for one in record.lines[-1].by_last)
    found = {}
    for n in EVERY_LENGTH:
        low, high = guessing_interval(record.tested, n) if whole else (None, None)
        ends = (np.nan if end is None else end for end in (low, high))
        found[n] = Interval(1 / len(set(record.runs)), *ends)
    return found


def _roc_curves(report: ReportInputs, record: LearnerRecord, prefix: str, curves: list[Roc]) -> list[dict[str, Any]]:
    if not curves:
        return []
    drawn = curves[-report.shown_runs :]
    file = report.folder.add(f"{prefix}-roc.png")
    plots.draw_rocs(file, drawn)
    low, high = min(curve.auc for curve in drawn), max(curve.auc for curve in drawn)
    return [picture(file, f"ROC curves of {record.name}, each run against the others: AUC from {low:.3f} to {high:.3f}.")]


def _windows(report: ReportInputs, record: LearnerRecord, prefix: str) -> list[dict[str, Any]]:
    if not record.prequential:
        return []
    file = report.folder.add(f"{prefix}-windows.png")
    plots.draw_windows(file, record.prequential["by_window"])
    words = f"{record.prequential['windows']} windows, accuracy {number(record.prequential['accuracy'])} on arrival"
    return [picture(file, f"Prequential accuracy of {record.name}: {words}.")]


def _losses(report: ReportInputs, record: LearnerRecord, prefix: str) -> list[dict[str, Any]]:
    losses = [line.loss for line in record.lines]
    if not any(losses):
        return []
    file = report.folder.add(f"{prefix}-loss.png")
    plots.draw_losses(file, record.runs, losses)
    return [picture(file, f"Training loss of {record.name} over {len(record.lines)} runs.")]


def runs_table(record: LearnerRecord, curves: list[Roc]) -> list[dict[str, Any]]:
    """One row for each run: how well the learner told it right after learning it, and how well now."""
    last = record.lines[-1]
    table = []
    for i, (line, experience) in enumerate(zip(record.lines, record.learnt, strict=True)):
        first_row = record.lines[max(i, 1)].accuracy if len(record.lines) > 1 else None
        table.append(
            {
                "run": line.run,
                "train": experience.train,
                "test": experience.test,
                "accuracy_first": None if first_row is None else first_row[i],
                "accuracy": None if last.accuracy is None else last.accuracy[i],
                "auc": None if last.auc is None else last.auc[i],
                "false_positive_rate": _false_positives_at_capture(curves[i]) if curves else None,
                "new_run_auc": None if line.before is None else line.before.new_run_auc,
                "nearest_run": None if line.before is None else line.before.nearest_run,
                "seconds": round(sum(line.seconds.values()), 3),
            }
        )
    return table


def _false_positives_at_capture(curve: Roc) -> float:
    """Smallest false-positive rate at which 95 % of the run's own lumisections are attributed to it."""
    return float(curve.false_positive[np.argmax(curve.true_positive >= CAPTURE)])
