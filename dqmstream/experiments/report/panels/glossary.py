"""Panel: what known, new, flagged, faulty, failed and changed mean, and which score decides it."""

from __future__ import annotations

from dqmstream.experiments.report.gain_changes import BEYOND
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs

TERMS = (
    (
        "by the last n",
        "A lumisection and the n - 1 before it in its run name the run together: their log-probabilities are summed.",
    ),
    ("known", "A run that the learner has learnt."),
    (
        "new",
        "A run that the learner has not learnt. The new-run score says how little a lumisection looks like any known run.",
    ),
    (
        "flagged",
        "A lumisection that looks like no known run: its new-run score is so high that at most the share --alarms of a known "
        "run's lumisections reach it. Given by dqmstream flags.",
    ),
    (
        "faulty",
        "A lumisection in which something failed: by the fault score, the probability that nothing did is at most --alarms. "
        "Changes of luminosity are ignored. Given by dqmstream flags.",
    ),
    (
        "failed",
        "A channel that has failed in a faulty lumisection, by its part of the fault score. Given by dqmstream flags.",
    ),
    (
        "changed",
        "A channel that responds differently in two runs at the same luminosity. In this report: its pull between a run and "
        f"the run before is beyond ±{BEYOND:g}. In dqmstream compare: it is named at the false-discovery rate --rate.",
    ),
)


def glossary_panel(report: ReportInputs) -> Panel:
    return Panel("glossary.html.j2", {"terms": TERMS}, [Link("glossary", "Glossary")])
