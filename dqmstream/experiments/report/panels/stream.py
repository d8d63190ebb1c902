"""Panel: average accuracy and forgetting of all learners and baselines over the stream."""

from __future__ import annotations

from dqmstream.experiments.page import number, picture
from dqmstream.experiments.report import plots
from dqmstream.experiments.report.curves import course
from dqmstream.experiments.report.learner_records import LearnerRecord, baselines
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs


def stream_panel(report: ReportInputs) -> Panel | None:
    """None after one run, when there is no course to draw."""
    courses = [course(record.name, record.lines, beside=False) for record in report.learners]
    courses += [
        course(_baseline_name(name, record, report.main), lines, beside=True)
        for name, record, lines in baselines(report.learners)
    ]
    longest = max(len(record.lines) for record in report.learners)
    report.step("draw")
    if longest < 2:
        return None
    file = report.folder.add("stream.png")
    plots.draw_courses(file, longest, courses)
    last = ", ".join(f"{course.name} {number(course.accuracy[-1])}" for course in courses)
    shown = picture(file, f"Average accuracy and forgetting over {longest} runs. Accuracy at the end: {last}.")
    return Panel("stream.html.j2", {"shown": shown}, [Link("stream", "Over the stream")])


def _baseline_name(name: str, record: LearnerRecord, main: LearnerRecord) -> str:
    """A baseline's name, with that of its learner unless this is the main one."""
    return name if record is main else f"{name} beside {record.name}"
