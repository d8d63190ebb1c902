"""The report's maps of the detector: ieta on x, iphi on y, one row of maps a depth, cells that never count left blank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.lines import Line2D
from scipy.stats import norm

from dqmstream.experiments.detector_map import DEAD, on_map, show_map
from dqmstream.experiments.figures import canvas
from dqmstream.experiments.report.gain_changes import BEYOND, GainChange, RunView
from dqmstream.lumisection import IETA

_PANEL_IN = 4.4
"""Height of a row of maps."""


def draw_occupancy(path: Path, view: RunView, highest: float) -> None:
    """Draw the first lumisection and the mean of a run. highest: upper end of the colour scale, the same for all runs."""
    depths = len(view.live)
    with canvas(path, _PANEL_IN * depths) as figure:
        panels = figure.subplots(depths, 2, squeeze=False, sharex=True, sharey=True)
        scale = Normalize(0, highest)
        titles = (f"lumisection {view.first_lumisection}", f"mean of {view.lumisections} lumisections")
        above = bool(max(np.nanmax(view.first), np.nanmax(view.mean)) > highest)
        for depth, row in enumerate(panels):
            for axes, values, title in zip(row, (view.first, view.mean), titles, strict=True):
                image = show_map(axes, values[depth], "cividis", scale)
                axes.set_title(f"depth {depth + 1}, {title}")
                if depth == depths - 1:
                    axes.set_xlabel("ieta")
            row[0].set_ylabel("iphi")
            what = "counts / event" if view.per_event else "counts / lumisection"
            figure.colorbar(image, ax=row, label=what, pad=0.02, extend="max" if above else "neither")


def draw_change(path: Path, change: GainChange, live: np.ndarray) -> None:
    """Draw pulls as a map, with dead and recovered channels marked, and as a histogram. live: bool, (depth, 64, 72)."""
    pulls = on_map(change.pull, live)
    before, after = on_map(change.gain_before, live), on_map(change.gain_after, live)
    limit = max(2 * BEYOND, float(np.abs(change.pull).max()))
    scale = SymLogNorm(linthresh=BEYOND, linscale=1.0, vmin=-limit, vmax=limit, base=10)
    with canvas(path, _PANEL_IN * len(live)) as figure:
        panels = figure.subplots(len(live), 2, squeeze=False, width_ratios=(1.7, 1))
        for depth, (axes, counts) in enumerate(panels):
            image = show_map(axes, pulls[depth], "coolwarm", scale)
            marks = [
                *_mark(axes, after[depth] < DEAD, "o", "dead"),
                *_mark(axes, (before[depth] < DEAD) & (after[depth] >= DEAD), "s", "counts again"),
            ]
            if marks:
                axes.legend(handles=marks, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, handletextpad=0.2)
            axes.set_title(f"depth {depth + 1}")
            axes.set_xlabel("ieta")
            axes.set_ylabel("iphi")
            bar = figure.colorbar(image, ax=axes, label="pull (standard deviations)", pad=0.02)
            bar.set_ticks(_ticks(limit), labels=[f"{tick:g}" for tick in _ticks(limit)])
            bar.minorticks_off()
            _histogram(counts, pulls[depth][live[depth]])


def _mark(axes: Axes, cells: np.ndarray, marker: str, label: str) -> list[Line2D]:
    """Mark the cells that are set in a bool map, (64, 72), and return the legend entry, if any is set."""
    rows, columns = np.nonzero(cells)
    if not len(rows):
        return []
    return axes.plot(
        IETA[rows], columns + 1, marker, markersize=9, markerfacecolor="none", markeredgecolor="black", label=label
    )


def _ticks(limit: float) -> list[float]:
    """Ticks of a scale that is linear to ±5 and logarithmic beyond."""
    beyond = [tick for tick in (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0) if tick <= limit]
    return [*(-tick for tick in reversed(beyond)), -BEYOND, 0.0, BEYOND, *beyond]


def _histogram(axes: Axes, pulls: np.ndarray) -> None:
    """Draw a histogram of the pulls of a depth, with those beyond ±10 in the outer bins, and the expectation from chance."""
    edges = np.linspace(-2 * BEYOND, 2 * BEYOND, 41)
    axes.hist(np.clip(pulls, edges[0], edges[-1]), edges.tolist(), color="#3f90da", label="channels")
    fine = np.linspace(edges[0], edges[-1], 401)
    axes.plot(fine, pulls.size * (edges[1] - edges[0]) * norm.pdf(fine), color="#bd1f01", linewidth=1.5, label="chance alone")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 3 * max(pulls.size, 1))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("pull (outer bins: all beyond)")
    axes.set_ylabel("channels")
    axes.legend(loc="upper center", ncols=2)
