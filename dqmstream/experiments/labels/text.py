"""The tables of the benchmark of labels as text, and its files: results.json, table.md and labels.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.figures import COLOURS, MARKERS, canvas, plain
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.storage.locks import write_atomically

COLUMNS = ["", "AUC", "forgetting of AUC", "accuracy", "forgetting", "transfer: back", "forward", "ECE", "fitted", "kB", "s"]

NOTE = (
    "95 % intervals, by resampling periods and streams. AUC, accuracy: after the last period, mean over periods; chance is .5 "
    "of AUC. Forgetting: the highest so far minus the last. transfer: backward, and forward to a period before it is learnt, "
    "of AUC. ECE: expected calibration error as it comes, and with a temperature from validation. conditions sees luminosity "
    "alone. joint reads all periods again. kB: memory for past lumisections."
)


KNOWS = 0.8
"""AUC below which a strategy knows next to nothing."""


def title(result: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    """Stream, split, runs and seeds in one line."""
    spec = result["spec"]
    seeds = ", ".join(map(str, spec["seeds"]))
    size = f"{spec['runs']} runs of {spec['lumisections']} lumisections"
    return f"{spec['stream']}, good or faulty, split by {split['split']}: {size}, seeds {seeds} ({result['use']})"


def printed(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, one entry for each of `COLUMNS`."""
    return [
        row["strategy"],
        *(_interval(row[name]) for name in ("auc", "forgetting_auc", "accuracy", "forgetting")),
        *(_number(row[name]) for name in ("backward_transfer_auc", "forward_transfer_auc", "ece", "ece_calibrated")),
        f"{(row['memory_bytes'] or 0) / 1000:.0f}",
        f"{row['learn_s'] or 0:.1f}",
    ]


def order_lines(split: Mapping[str, Any]) -> list[str]:
    """A sentence for each pair of methods whose forgetting is compared."""
    return [
        f"{pair['more']} forgets {_interval(pair)} more {pair['what']} than {pair['less']} "
        f"(paired by period, p = {pair['p']:.2g})"
        for pair in split["order"]
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    parts = []
    for split in result["splits"]:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(printed(row) for row in split["rows"])]
        parts.append(f"{title(result, split)}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
        parts += [f"- {line}" for line in order_lines(split)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write results.json, table.md and labels.png (of the first split)."""
    write_atomically(out / "results.json", json.dumps(nan_as_null(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    if result["splits"] and result["splits"][0]["rows"]:
        draw(out / "labels.png", result["splits"][0]["rows"])


def draw(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Draw AUC over the periods learnt so far, and what is forgotten of AUC and of accuracy, with intervals.

    Strategies that know nothing (`KNOWS`) are named in the figure, not drawn: they would set its scale.
    """
    drawn = [row for row in rows if row["auc"]["estimate"] >= KNOWS] or rows
    others = ", ".join(f"{row['strategy']} {_number(row['auc']['estimate'])}" for row in rows if row not in drawn)
    with canvas(path, height_in=4.8) as figure:
        course, final = figure.subplots(1, 2)
        for place, row in enumerate(drawn):
            colour = ("#000000", *COLOURS)[(place + 1) % (len(COLOURS) + 1)]
            marker = MARKERS[place % len(MARKERS)]
            curve = [np.nan if value is None else value for value in row["curve"]]
            course.plot(
                np.arange(1, len(curve) + 1), curve, color=colour, marker=marker, ms=4, lw=1.2, label=plain(row["strategy"])
            )
            for name, shift, fill in (("forgetting_auc", -0.12, "full"), ("forgetting", 0.12, "none")):
                x = row[name]
                at = [x["estimate"]], [place + shift]
                final.errorbar(*at, xerr=_sides(x), fmt=marker, ms=6, lw=1, color=colour, fillstyle=fill)
        course.set_xlabel("periods learnt")
        course.set_ylabel("AUC, mean over them")
        if others:
            course.set_title(f"not drawn: {plain(others)}", fontsize=9)
        final.axvline(0, color="#717581", lw=0.8)
        final.set_yticks(range(len(drawn)), [plain(row["strategy"]) for row in drawn])
        final.tick_params(axis="y", which="minor", left=False, right=False)
        final.set_ylim(len(drawn) - 0.5, -0.5)
        final.set_xlabel("forgetting of AUC (full), of accuracy (open)")
        figure.legend(*course.get_legend_handles_labels(), loc="outside lower center", ncols=8)


def _sides(interval: Mapping[str, float]) -> np.ndarray:
    below, above = interval["estimate"] - interval["low"], interval["high"] - interval["estimate"]
    return np.maximum(np.array([[below], [above]]), 0.0)


def _interval(value: Mapping[str, Any]) -> str:
    return f"{_number(value['estimate'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)
