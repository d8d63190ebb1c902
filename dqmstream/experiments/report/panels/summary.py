"""Panel: the table of learners and baselines, each beside what guessing gives."""

from __future__ import annotations

from dataclasses import asdict

from dqmstream.experiments.report.panel import Link, Panel, ReportInputs
from dqmstream.experiments.report.summary import LUMINOSITY_SHARES, SURE
from dqmstream.experiments.statistics import CONFIDENCE


def summary_panel(report: ReportInputs) -> Panel:
    values = {
        "rows": report.rows,
        "main": report.main.name,
        "confidence": CONFIDENCE,
        "sure": SURE,
        "luminosity_shares": LUMINOSITY_SHARES,
    }
    return Panel("summary.html.j2", values, [Link("summary", "Summary")], {"summary": [asdict(row) for row in report.rows]})
