"""The map of a comparison: the change of each channel's response, changed channels outlined, changed readout boxes framed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dqmstream.experiments.compare.findings import Findings
from dqmstream.experiments.detector_map import on_map, show_map
from dqmstream.experiments.figures import canvas, plain
from dqmstream.lumisection import N_IPHI

_PANEL_IN = (7.4, 6.4)
_LINEAR_PERCENT = 1.0
"""Up to this change the colour scale is linear, beyond it logarithmic, so that drifts and dead channels both show."""

_TICKS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)


def draw_comparison(path: Path | None, found: Findings) -> Figure:
    """Draw one map a depth, with cells that count in neither run left blank. path: the PNG file to write, if any."""
    channels, tested = found.pair.channels, found.channel_tests
    live = channels.live
    percent = on_map(np.clip(100 * (tested.ratio - 1), -100, 100), live)
    columns = 1 if len(live) == 1 else 2
    rows = -(-len(live) // columns)
    scale = SymLogNorm(linthresh=_LINEAR_PERCENT, linscale=1.0, vmin=-100, vmax=100, base=10)
    a, b = (plain(name) for name in found.pair.names)
    with canvas(path, 0.9 + _PANEL_IN[1] * rows, _PANEL_IN[0] * columns) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for depth, axes in enumerate(panels):
            if depth >= len(live):
                axes.set_visible(False)
                continue
            image = show_map(axes, percent[depth], "coolwarm", scale)
            here = channels.depth == depth + 1
            _outline(axes, found, here)
            axes.set_title(f"depth {depth + 1}: {int(tested.changed[here].sum())} of {int(here.sum())} channels changed")
            axes.set_xlabel("ieta")
            axes.set_ylabel("iphi")
        bar = figure.colorbar(image, ax=panels.tolist(), label="change of response (%)", pad=0.02, extend="max")
        bar.set_ticks(_TICKS, labels=[f"{tick:+d}" if tick else "0" for tick in _TICKS])
        bar.minorticks_off()
        figure.suptitle(f"{b}\nagainst {a}", fontsize=11, x=0.02, ha="left")
        keys = _keys(found)
        if keys:
            figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def _outline(axes: Axes, found: Findings, here: np.ndarray) -> None:
    """Mark the changed channels and boxes on the map of a depth. here: the depth's channels, bool, (live,)."""
    channels = found.pair.channels
    changed = np.flatnonzero(here & found.channel_tests.changed)
    cells = [Rectangle((channels.ieta[c] - 0.5, channels.iphi[c] - 0.5), 1, 1) for c in changed]
    axes.add_collection(PatchCollection(cells, facecolor="none", edgecolor="black", linewidth=0.7))
    for cells_of, marker in ((found.died, "x"), (found.woke, "+")):
        marked = np.flatnonzero(here & cells_of)
        axes.plot(channels.ieta[marked], channels.iphi[marked], marker, color="black", markersize=9, markeredgewidth=2)
    for name in found.box_names[found.box_tests.changed]:
        mine = here & (channels.box == name)
        if mine.any():
            low, high = channels.ieta[mine].min() - 0.9, channels.ieta[mine].max() + 0.9
            for first, last in _columns(abs(int(name))):
                frame = Rectangle((low, first - 0.5), high - low, last - first + 1, fill=False, linewidth=2.2, linestyle="--")
                axes.add_patch(frame)


def _columns(box: int) -> list[tuple[int, int]]:
    """First and last iphi of readout box n, 4n-5 .. 4n-2; box 1 lies on both sides of iphi 72 / 1."""
    return [(N_IPHI - 1, N_IPHI), (1, 2)] if box == 1 else [(4 * box - 5, 4 * box - 2)]


def _keys(found: Findings) -> list[Line2D]:
    """Legend entries of the marks that are drawn."""
    kinds: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (found.channel_tests.changed.any(), {"marker": "s", "markerfacecolor": "none"}, "changed"),
        (found.died.any(), {"marker": "x", "markeredgewidth": 2}, "newly dead"),
        (found.woke.any(), {"marker": "+", "markeredgewidth": 2}, "newly alive"),
        (found.box_tests.changed.any(), {"linestyle": "--", "linewidth": 2.2}, "readout box changed"),
    )
    return [Line2D([], [], color="black", **{"linestyle": "", **style}, label=label) for drawn, style, label in kinds if drawn]
