"""Panel: further figures of learners and baselines, such as any-time accuracy and calibration."""

from __future__ import annotations

from dataclasses import asdict

from dqmstream.experiments.report.further_figures import further_figures
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs


def further_figures_panel(report: ReportInputs) -> Panel:
    figures = further_figures(report.learners)
    links = [Link("measures", "Further figures")]
    return Panel("further_figures.html.j2", {"figures": figures}, links, {"measures": [asdict(one) for one in figures]})
