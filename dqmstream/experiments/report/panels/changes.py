"""Panel: which channels changed from run to run, with maps of the last runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from dqmstream.experiments.detector_map import DEAD
from dqmstream.experiments.page import picture
from dqmstream.experiments.report import map_plots
from dqmstream.experiments.report.gain_changes import BEYOND, GainChange, RunView, largest, run_views
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs

TOP_CHANNELS = 15
"""Channels in the table of a run."""


def changes_panel(report: ReportInputs) -> Panel:
    views = []
    for view in run_views(report.archive, report.main.learnt, report.shown_runs):
        views.append(view)
        report.step("read")
    # One scale for all runs, so that their maps can be compared; a few hot channels must not darken the rest.
    highest = {
        unit: _rounded_up(max(float(np.nanquantile(view.mean, 0.995)) for view in views if view.per_event is unit))
        for unit in {view.per_event for view in views}
    }
    runs = [_section(report, view, highest[view.per_event]) for view in views]
    return Panel(
        "changes.html.j2",
        {
            "runs": runs,
            "main": report.main,
            "stream_runs": len(report.main.learnt),
            "shown_runs": report.shown_runs,
            "beyond": BEYOND,
            "dead": DEAD,
        },
        [Link("changes", "Which channels changed"), *(_link(run) for run in runs)],
        {"pulls": [run["change"] | {"run": run["run"]} for run in runs if run["change"]]},
    )


def _link(run: dict[str, Any]) -> Link:
    beyond = run["change"]["beyond"] if run["change"] else 0
    return Link(f"run-{run['run']}", f"Run {run['run']}", f": {beyond} channel{'' if beyond == 1 else 's'}" if beyond else "")


def _section(report: ReportInputs, view: RunView, highest: float) -> dict[str, Any]:
    """The section of a run. highest: upper end of the colour scale of its occupancy."""
    file = report.folder.add(f"run-{view.run}-occupancy.png")
    map_plots.draw_occupancy(file, view, highest)
    alt = f"Occupancy of run {view.run} by ieta and iphi: lumisection {view.first_lumisection}, and the train part's mean."
    section = {"run": view.run, "view": view, "occupancy": picture(file, alt), "change": None, "pulls": None}
    if view.change is not None:
        file = report.folder.add(f"run-{view.run}-changes.png")
        map_plots.draw_change(file, view.change, view.live)
        alt = f"Pulls of the channels of run {view.run} against run {view.change.before}: "
        section["pulls"] = picture(file, f"{alt}{view.change.beyond} beyond {BEYOND:g}.")
        section["change"] = _figures(view.change, view.live)
    report.step("draw")
    return section


def _figures(change: GainChange, live: np.ndarray) -> dict[str, Any]:
    """A change, ready for JSON. live: bool, (depth, 64, 72)."""
    return {
        "before": change.before,
        "channels": change.pull.size,
        "beyond": change.beyond,
        "expected_beyond": change.expected_beyond,
        "expected_beyond_by_width": change.expected_beyond_by_width,
        "width": change.width,
        "dead": int(np.sum(change.gain_after < DEAD)),
        "from_reference": change.from_reference,
        "largest": largest(change, live, TOP_CHANNELS),
    }


def _rounded_up(value: float) -> float:
    """The next number of two digits: 0.987 becomes 0.99, 1234 becomes 1300."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 1) if value > 0 else 1.0
    return float(np.ceil(value / unit) * unit)
