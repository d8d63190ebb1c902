"""The report's curves and matrices, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dqmstream.experiments.figures import COLOURS, HALF_IN, MARKERS, WIDE_IN, canvas, plain
from dqmstream.experiments.report.curves import Course, CurveByLast, Roc
from dqmstream.experiments.statistics import Interval

COMPACT_RUNS = 10
"""Matrices of up to this many runs are readable at half the width of the page."""

ANNOTATED_RUNS = 24
"""Up to this many runs the cells of a matrix have room for numbers."""


def draw_matrix(path: Path, values: np.ndarray, runs: Sequence[int], what: str) -> None:
    """Draw R[t, i] as a heat map from 0 to 1. values: (T, T), nan where undefined. what: name of the colour scale."""
    size = len(runs)
    width_in, height_in = (HALF_IN, 4.3) if size <= COMPACT_RUNS else (WIDE_IN, 8.4)
    with canvas(path, height_in, width_in) as figure:
        axes = figure.subplots()
        image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="equal", interpolation="nearest")
        ticks = range(0, size, -(-size // ANNOTATED_RUNS))
        labels = [str(runs[i]) for i in ticks]
        axes.set_xticks(ticks, labels, rotation=90)
        axes.set_yticks(ticks, labels)
        axes.tick_params(which="both", length=0)
        axes.minorticks_off()
        axes.set_xlabel("test lumisections of run")
        axes.set_ylabel("after learning run")
        if size <= ANNOTATED_RUNS:
            _annotate(axes, values, 18 * width_in / size)
        figure.colorbar(image, ax=axes, label=what, shrink=0.8, pad=0.02)


def _annotate(axes: Axes, values: np.ndarray, points: float) -> None:
    """Write the number into each cell, light on dark and dark on light."""
    for (t, i), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "black" if value > 0.5 else "white"
            axes.text(i, t, f"{value:.2f}", ha="center", va="center", fontsize=min(points, 13), color=ink)


def draw_courses(path: Path, runs: int, courses: Sequence[Course]) -> None:
    """Draw average accuracy and forgetting over the stream, with the accuracy of guessing. runs: of the longest stream."""
    seen = np.arange(1, runs + 1)
    with canvas(path, 8.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(seen[1:], 1 / seen[1:], color="black", linestyle=":", label="guessing")
        for number, course in enumerate(courses):
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)] if runs <= 60 else "",
                "markersize": 5,
                "linewidth": 1.3,
                "linestyle": "--" if course.beside else "-",
                "label": plain(course.name),
            }
            upper.plot(seen[: len(course.accuracy)], course.accuracy, **style)
            lower.plot(seen[: len(course.forgetting)], course.forgetting, **style)
        upper.set_ylim(-0.03, 1.05)
        upper.set_ylabel("average accuracy")
        low, high = lower.get_ylim()
        lower.set_ylim(min(low, -0.03), max(high, 0.1))
        lower.axhline(0, color="black", linestyle=":")
        lower.set_ylabel("forgetting")
        lower.set_xlabel("runs learnt")
        lower.set_xlim(1.5, runs + 0.5)
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        for axes in (upper, lower):
            axes.xaxis.minorticks_off()
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=4)


def draw_by_last(path: Path, curves: Sequence[CurveByLast], guessing: Mapping[int, Interval]) -> None:
    """Draw accuracy against the number of lumisections that name the run together; the first curve is the learner's.

    guessing: range of guessing at each number; where its ends are nan, the line alone is drawn.
    """
    with canvas(path, 4.3, HALF_IN) as figure:
        axes = figure.subplots()
        lengths = list(guessing)
        low, high = ([getattr(guessing[n], name) for n in lengths] for name in ("low", "high"))
        axes.fill_between(lengths, low, high, color="#717581", alpha=0.25, linewidth=0)
        axes.plot(lengths, [guessing[n].estimate for n in lengths], color="black", linestyle=":", label="guessing")
        for number, curve in enumerate(curves):
            values = list(curve.accuracy.values())
            error = np.array([[value.estimate - value.low, value.high - value.estimate] for value in values]).T
            axes.errorbar(
                list(curve.accuracy),
                [value.estimate for value in values],
                yerr=np.maximum(error, 0.0),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.3 if number else 1.8,
                linestyle="--" if number else "-",
                capsize=2,
                label=plain(curve.name),
            )
        axes.set_xscale("log")
        axes.set_xticks(lengths, [str(n) for n in lengths])
        axes.minorticks_off()
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel("lumisections summed")
        axes.set_ylabel("accuracy")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_losses(path: Path, runs: Sequence[int], losses: Sequence[Sequence[float]]) -> None:
    """Draw the training loss at each step, run after run. losses: one curve a run, empty if nothing was trained."""
    with canvas(path, 4.6) as figure:
        axes = figure.subplots()
        start = 0
        trained = [(run, np.asarray(curve)) for run, curve in zip(runs, losses, strict=True) if len(curve)]
        every = -(-len(trained) // ANNOTATED_RUNS)
        for number, (run, curve) in enumerate(trained):
            steps = start + np.arange(len(curve))
            axes.plot(steps, curve, color="#b5b9c0", linewidth=0.7)
            window = max(1, len(curve) // 12)
            smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
            axes.plot(steps[window // 2 : window // 2 + len(smooth)], smooth, color=COLOURS[number % 2], linewidth=1.6)
            axes.axvline(start, color="#717581", linewidth=0.6, linestyle=":")
            if number % every == 0:
                place = (start + len(curve) / 2, 1.0)
                axes.annotate(
                    str(run), place, xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
                    rotation=90 if len(trained) > 8 else 0, ha="center", va="bottom", fontsize=9,
                )  # fmt: skip
            start += len(curve)
        axes.set_xlim(0, start)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training step of the stream (each run's steps under its number)")
        axes.set_ylabel("training loss (cross-entropy and penalties)")


def draw_windows(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw prequential accuracy over the windows of a windows.jsonl, of each window, and of always naming the newest run."""
    number = np.arange(1, len(lines) + 1)
    size, right, same = (np.array([line[name] for line in lines]) for name in ("lumisections", "right", "no_change"))
    known = np.array([line["known"] for line in lines])
    with canvas(path, 4.6) as figure:
        axes = figure.subplots()
        for which, colour, label in ((known, COLOURS[7], "a window"), (~known, "#b5b9c0", "of a run not known yet")):
            share = (right / size)[which]
            axes.plot(number[which], share, "o", markersize=3, color=colour, label=label, zorder=1)
        axes.plot(number, np.cumsum(same) / np.cumsum(size), ":", color="black", label="newest known run", zorder=4)
        axes.plot(number, [line["cumulative"] for line in lines], color=COLOURS[0], linewidth=1.8, label="all windows so far")
        axes.plot(number, [line["sliding"] for line in lines], color=COLOURS[1], linewidth=1.3, label="last windows")
        for begin in [i for i in range(len(lines)) if lines[i]["of_run"] == 0][:: -(-len(lines) // 200)]:
            axes.axvline(begin + 0.5, color="#717581", linewidth=0.6, linestyle=":")
        axes.set_xlim(0.5, len(lines) + 0.5)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel("window of the stream (runs begin at the dotted lines)")
        axes.set_ylabel("accuracy on arrival")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.xaxis.minorticks_off()
        figure.legend(loc="outside upper center", ncols=5)


def draw_rocs(path: Path, curves: Sequence[Roc]) -> None:
    """Draw the ROC curve of each run against all others, with a linear and a logarithmic axis of false positives."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    with canvas(path, 5.0 if len(curves) <= 12 else 6.6) as figure:
        whole, low = figure.subplots(1, 2, sharey=True)
        smallest = min((curve.false_positive[curve.false_positive > 0].min() for curve in curves), default=0.01)
        for axes in (whole, low):
            diagonal = np.geomspace(smallest / 2, 1, 200)
            axes.plot(diagonal, diagonal, color="black", linestyle=":", label="guessing")
            for colour, curve in zip(colours, curves, strict=True):
                label = f"{curve.run}, AUC {curve.auc:.3f}"
                axes.plot(curve.false_positive, curve.true_positive, color=colour, linewidth=1.2, label=label)
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("false-positive rate")
        whole.set_xlim(0, 1)
        low.set_xscale("log")
        low.set_xlim(smallest / 2, 1)
        whole.set_ylabel("true-positive rate")
        figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4)
