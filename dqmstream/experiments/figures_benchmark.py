"""The figure of a benchmark: accuracy of each strategy with its interval over that of guessing, a panel a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.figures import canvas, plain

_BLUE, _RED, _GREY = "#3f90da", "#bd1f01", "#717581"


def draw_accuracies(path: Path, tables: Sequence[Mapping[str, Any]]) -> None:
    """tables: as in `experiments.table.summarise`; at least one, with at least one row."""
    names = list(dict.fromkeys(row["strategy"] for table in tables for row in table["rows"] if not row["bound"]))
    with canvas(path, height_in=1.6 + 0.32 * max(len(names), 1)) as figure:
        panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axes, table in zip(panels, tables, strict=True):
            for row in table["rows"]:
                value = row["accuracy"]
                if row["bound"]:
                    style = "-" if row["strategy"] == "ideal" else ":"
                    axes.axvline(value["estimate"], color=_RED, ls=style, lw=1.5, label=plain(row["strategy"]))
                    continue
                place = names.index(row["strategy"])
                error = np.maximum([[value["estimate"] - value["low"]], [value["high"] - value["estimate"]]], 0.0)
                chance = row["guessing"]
                width = chance["high"] - chance["low"]
                axes.barh(place, width, 0.8, chance["low"], color=_GREY, alpha=0.3, lw=0, label="guessing")
                axes.errorbar(value["estimate"], place, xerr=error, fmt="o", color=_BLUE, ms=5, capsize=3)
            axes.set_title(plain(table["stream"]))
            axes.set_xlim(-0.03, 1.03)
            axes.set_xlabel("accuracy")
            axes.set_yticks(range(len(names)), [plain(name) for name in names])
            axes.tick_params(axis="y", which="minor", left=False, right=False)
            axes.set_ylim(len(names) - 0.5, -0.5)
        named = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3)
