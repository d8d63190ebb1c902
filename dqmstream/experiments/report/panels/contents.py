"""Panel: links to all panels."""

from __future__ import annotations

from dqmstream.experiments.report.panel import Panel, ReportInputs


def contents_panel(report: ReportInputs) -> Panel:
    return Panel("contents.html.j2")
