"""The report of an archive: what was learnt and forgotten, whether it is more than chance, and which channels changed.

It reads the archive and the state folder, and runs no learner's model. The page, its pictures and results.json, which holds
every number of the page, lie in one folder; the page loads nothing from the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dqmstream.errors import InputError
from dqmstream.experiments.page import PageFolder, page_template
from dqmstream.experiments.report.learner_records import read_label_records, read_records
from dqmstream.experiments.report.panel import Panel, ReportInputs
from dqmstream.experiments.report.panels import PANELS
from dqmstream.experiments.report.panels.archive import about
from dqmstream.storage.archive import Archive

SHOWN_RUNS = 24
"""Of a longer stream only so many of the last runs get maps, curves and lines in tables; results.json holds the others too."""

Progress = Callable[[str, int, int], None]


def write_report(
    archive: Archive,
    state: Path,
    out: Path,
    *,
    shown_runs: int = SHOWN_RUNS,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write the report of an archive and its learners into a folder, and return the path of its index.html.

    state: one folder a learner. out: missing, empty, or an older report's. progress: called with the stage, the number of steps
    done, and the number of all steps. Raises StateError if no learner has learnt a run or one cannot be read, InputError if out
    holds files that no report wrote, or cannot be written.
    """
    learners = read_records(archive, state)
    steps = _Steps(1 + len(learners) + 2 * min(len(learners[0].learnt), shown_runs), progress)
    try:
        labels = read_label_records(archive, state)
        return _write(ReportInputs(archive, learners, about(archive), PageFolder(out), shown_runs, steps, labels))
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror}; choose another folder") from error


class _Steps:
    """Counts the steps of a report and passes them on."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, stage: str) -> None:
        self._done += 1
        self._progress(stage, self._done, self._total)


def _write(report: ReportInputs) -> Path:
    panels = [panel for make in PANELS if (panel := make(report)) is not None]
    results: dict[str, Any] = {"about": report.about}
    for panel in panels:
        results |= panel.results
    text = json.dumps(results, indent=1, allow_nan=False)
    report.folder.add("results.json").write_text(text + "\n", encoding="utf-8")
    page = report.folder.add("index.html")
    page.write_text(_html(report, panels), encoding="utf-8")
    report.folder.finish()
    return page


def _html(report: ReportInputs, panels: list[Panel]) -> str:
    links = [link for panel in panels for link in panel.links]
    parts = [Markup(page_template(f"report/{panel.template}").render(**panel.values, links=links)) for panel in panels]
    return page_template("report/page.html.j2").render(about=report.about, panels=parts)
