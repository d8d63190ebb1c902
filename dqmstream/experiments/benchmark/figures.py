"""Figures of a benchmark: accuracy of each row, and accuracy against the last n lumisections, memory and operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dqmstream.experiments.benchmark.bounds import IDEAL
from dqmstream.experiments.benchmark.text import by_last
from dqmstream.experiments.figures import COLOURS, MARKERS, canvas, plain
from dqmstream.learners.evaluation.history_line import EVERY_LENGTH

_BLUE, _RED, _GREY = "#3f90da", "#bd1f01", "#717581"

_ACROSS = 4
"""Most panels beside each other in the figure of accuracy against lumisections, which is drawn for many streams."""

Streams = Sequence[Mapping[str, Any]]
"""The streams of a table of `benchmark.summary.summarise`; at least one, each with at least one row."""


def draw_accuracies(path: Path, streams: Streams) -> None:
    """Draw a panel per stream: accuracy of each row with its interval, the range of guessing, and both bounds as lines."""
    names = list(dict.fromkeys(row["label"] for one in streams for row in one["rows"] if not row["bound"]))
    with canvas(path, height_in=1.6 + 0.32 * max(len(names), 1)) as figure:
        panels = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
        for axes, one in zip(panels, streams, strict=True):
            _bounds(axes.axvline, one["rows"])
            for row in one["rows"]:
                if row["bound"]:
                    continue
                place, chance = names.index(row["label"]), row["guessing"]
                width = chance["high"] - chance["low"]
                axes.barh(place, width, 0.8, chance["low"], color=_GREY, alpha=0.3, lw=0, label="guessing")
                value = row["accuracy"]
                axes.errorbar(value["estimate"], place, xerr=_error(value), fmt="o", color=_BLUE, ms=5, capsize=3)
            axes.set_title(plain(one["stream"]))
            axes.set_xlim(-0.03, 1.03)
            axes.set_xlabel("accuracy")
            axes.set_yticks(range(len(names)), [plain(name) for name in names])
            axes.tick_params(axis="y", which="minor", left=False, right=False)
            axes.set_ylim(len(names) - 0.5, -0.5)
        _legend(figure, panels)


def draw_memories(path: Path, streams: Streams) -> None:
    """Draw a panel per stream: accuracy against the memory for past runs, a line per strategy and model."""

    def lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, Mapping[str, float]]]]:
        found: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
        for row in rows:
            if row["kept_bytes"]:
                label = ", ".join(part for part in (row["strategy"], row["model"]) if part)
                found.setdefault(label, []).append((row["kept_bytes"] / 1000, row["accuracy"]))
        return found

    _draw_against(path, streams, {one["stream"]: lines(one["rows"]) for one in streams}, "memory for past runs [kB]", "-")


def draw_costs(path: Path, streams: Streams) -> None:
    """Draw a panel per stream: accuracy against the operations of all learning."""
    points = {
        one["stream"]: {row["label"]: [(row["flops"] / 1e9, row["accuracy"])] for row in one["rows"] if _cost(row)}
        for one in streams
    }
    _draw_against(path, streams, points, "learning [GFLOP]", "")


def draw_by_last(path: Path, streams: Streams) -> None:
    """Draw a panel per stream: accuracy where the last n lumisections name the run, against n; both bounds, and guessing."""
    names = list(dict.fromkeys(row["label"] for one in streams for row in one["rows"] if not row["bound"] and by_last(row)))
    across = min(len(streams), _ACROSS)
    down = -(-len(streams) // across)
    with canvas(path, height_in=(4.4 if down == 1 else 3.2 * down) + 0.24 * -(-len(names) // 4)) as figure:
        grid = figure.subplots(down, across, sharey=True, squeeze=False)
        panels = list(grid.flat)[: len(streams)]
        for unused in list(grid.flat)[len(streams) :]:
            unused.set_axis_off()
        for axes, one in zip(panels, streams, strict=True):
            for row in one["rows"]:
                if not by_last(row):
                    continue
                lengths = [int(n) for n in row["by_last"]]
                values = [found["accuracy"] for found in row["by_last"].values()]
                estimates, errors = [value["estimate"] for value in values], np.hstack([_error(value) for value in values])
                if row["bound"]:
                    style = "-" if row["strategy"] == IDEAL else ":"
                    axes.plot(lengths, estimates, color="black", ls=style, lw=1.5, label=plain(row["label"]))
                    continue
                number = names.index(row["label"])
                shape = {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}
                axes.errorbar(lengths, estimates, yerr=errors, lw=1.3, ms=5, capsize=2, label=plain(row["label"]), **shape)
            if one["rows"]:
                axes.axhline(one["rows"][0]["guessing"]["estimate"], color=_GREY, ls="--", lw=1.2, label="guessing")
            axes.set_title(plain(one["stream"]))
            axes.set_xscale("log")
            axes.set_xticks(EVERY_LENGTH, [str(n) for n in EVERY_LENGTH])
            axes.minorticks_off()
            axes.set_xlabel("lumisections summed")
            axes.set_ylim(-0.03, 1.05)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        _legend(figure, panels)


def _cost(row: Mapping[str, Any]) -> float:
    return 0.0 if row["bound"] else row["flops"] or 0.0


def _draw_against(
    path: Path,
    streams: Streams,
    points: Mapping[str, Mapping[str, Sequence[tuple[float, Mapping[str, float]]]]],
    what: str,
    line: str,
) -> None:
    names = list(dict.fromkeys(name for one in points.values() for name in one))
    with canvas(path, height_in=4.4 + 0.24 * -(-len(names) // 4)) as figure:
        panels = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
        for axes, one in zip(panels, streams, strict=True):
            _bounds(axes.axhline, one["rows"])
            for name, found in points[one["stream"]].items():
                number = names.index(name)
                at, values = zip(*sorted(found, key=lambda point: point[0]), strict=True)
                axes.errorbar(
                    at,
                    [value["estimate"] for value in values],
                    yerr=np.hstack([_error(value) for value in values]),
                    ls=line,
                    lw=1.3,
                    marker=MARKERS[number % len(MARKERS)],
                    color=COLOURS[number % len(COLOURS)],
                    ms=5,
                    capsize=2,
                    label=plain(name),
                )
            axes.set_title(plain(one["stream"]))
            axes.set_xscale("log")
            axes.set_xlabel(what)
            axes.set_ylim(-0.03, 1.05)
        panels[0].set_ylabel("accuracy")
        _legend(figure, panels)


def _bounds(line: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw both bounds. line: the method of the axes that draws a line across them."""
    for row in rows:
        if row["bound"]:
            style = "-" if row["strategy"] == IDEAL else ":"
            line(row["accuracy"]["estimate"], color=_RED, ls=style, lw=1.5, label=plain(row["label"]))


def _error(value: Mapping[str, float]) -> np.ndarray:
    """Lengths of the error bar below and above the estimate, (2, 1)."""
    return np.maximum([[value["estimate"] - value["low"]], [value["high"] - value["estimate"]]], 0.0)


def _legend(figure: Any, panels: Sequence[Axes]) -> None:
    named: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
