"""The figure of the fault benchmark: false positives at .95 capture and the share never found, by kind of fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.figures import canvas, plain

COLOURS = (
    "#717581", "#94a4a2", "#ffa90e", "#832db6", "#a96b59", "#92dadd", "#b9ac70", "#e76300", "#3f90da", "#bd1f01", "#000000",
)  # fmt: skip
"""Colours of the detectors in their order; the last one is the bound."""

FLOOR = 1e-4
"""Smaller false-positive rates are drawn at this value: less than one lumisection in ten thousand."""


def draw_faults(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the figure. result: of `faults.summary.summarise`, with at least one detector."""
    kinds, rows = result["kinds"], result["detectors"]
    panels = (
        ("false-positive rate at .95 capture", "lumisections", "fpr_0.95"),
        ("share of faults never found", "delays", "never"),
    )
    with canvas(path, height_in=1.9 + 0.42 * len(kinds)) as figure:
        for axes, (label, side, name) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            for place, row in enumerate(rows):
                value = np.array(
                    [[row["kinds"][kind][side][name][end] for end in ("estimate", "low", "high")] for kind in kinds]
                )
                if name != "never":
                    value = np.maximum(value, FLOOR)
                estimate, low, high = value.T
                axes.errorbar(
                    estimate,
                    np.arange(len(kinds)) + (place - (len(rows) - 1) / 2) * 0.8 / len(rows),
                    xerr=np.maximum([estimate - low, high - estimate], 0.0),
                    fmt="o",
                    ms=4,
                    lw=1,
                    color=COLOURS[place % len(COLOURS)],
                    label=plain(row["detector"]),
                )
            if name == "never":
                axes.set_xlim(-0.03, 1.03)
            else:
                axes.set_xscale("log")
                axes.set_xlim(FLOOR * 0.7, 1.3)
            axes.set_xlabel(label)
            axes.set_yticks(range(len(kinds)), [plain(kind) for kind in kinds])
            axes.tick_params(axis="y", which="minor", left=False, right=False)
            axes.set_ylim(len(kinds) - 0.5, -0.5)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
