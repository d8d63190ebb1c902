"""Panel: learners of good and faulty lumisections, with their figures and the AUC of each period."""

from __future__ import annotations

from typing import Any

from dqmstream.experiments.page import number, picture
from dqmstream.experiments.report import plots
from dqmstream.experiments.report.curves import square
from dqmstream.experiments.report.learner_records import LabelRecord
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs
from dqmstream.learners.evaluation.label_results import label_results


def labels_panel(report: ReportInputs) -> Panel | None:
    """None where no learner of labels has learnt a run."""
    if not report.labels:
        return None
    sections = [_section(report, place, record) for place, record in enumerate(report.labels, start=1)]
    links = [Link(f"labels-{place}", f"Good or faulty: {record.name}") for place, record in enumerate(report.labels, start=1)]
    results = {record.name: section["results"] for record, section in zip(report.labels, sections, strict=True)}
    return Panel("labels.html.j2", {"learners": sections}, links, {"labels": results})


def _section(report: ReportInputs, place: int, record: LabelRecord) -> dict[str, Any]:
    """One learner's section. place: 1, 2, ..., part of its file names."""
    found = label_results(record.lines)
    shown = None
    if found["periods"]:
        file = report.folder.add(f"labels-{place:02d}-auc.png")
        plots.draw_matrix(file, square(found["auc_matrix"]), [runs[-1] for runs in found["periods"]], "AUC")
        shown = picture(
            file,
            f"Matrix of the AUC of {record.name}, good against faulty: {len(found['periods'])} periods, "
            f"average of the last row {number(found['average_auc'])}.",
        )
    return {
        "record": record,
        "results": found,
        "rows": [(record.strategy, found), *found["baseline_figures"].items()],
        "shown": shown,
    }
