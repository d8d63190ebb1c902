"""The fault benchmark's tables as text, and its files: results.json, table.md and faults.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.faults.detection_metrics import CAPTURES, PREVALENCES
from dqmstream.experiments.faults.figure import draw_faults
from dqmstream.experiments.faults.oracle import Oracle
from dqmstream.experiments.faults.summary import CAUGHT, NAMED, PRECISE
from dqmstream.experiments.faults.track import ALL, KINDS
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.storage.locks import write_atomically

COLUMNS = [
    "detector", *(f"FPR at {capture:g}" for capture in CAPTURES), "AUC", "channels: FPR at .95", "AUC", "delay", "never found",
    "IoU", "recall", "precision", "alarms per run",
]  # fmt: skip
PRECISION_COLUMNS = [
    "detector", *(f"at {capture:g}, {100 * share:g} % faulty" for capture in CAPTURES for share in PREVALENCES),
    "thresholds from past: capture", *(f"precision, {100 * share:g} % faulty" for share in PREVALENCES),
]  # fmt: skip
COST_COLUMNS = ["detector", "numbers kept", "MB kept", "Mflop a lumisection", "ms a lumisection", "s to learn a run"]
KIND_COLUMNS = ["detector", *KINDS[:-1]]
BY_KIND = {
    "FPR at .95 of the lumisections with one kind of fault": ("lumisections", "fpr_0.95"),
    "Capture of lumisections with one kind of fault, thresholds from past good data": ("flagged", "capture"),
    f"Precision with these thresholds, {100 * PREVALENCES[0]:g} % faulty": ("flagged", f"precision_{PREVALENCES[0]:g}"),
    "Share of the faults that were never flagged": ("delays", "never"),
    "Intersection over union of the channels named": ("named", "iou"),
}

NOTE = (
    "95 % intervals by resampling runs (and streams). FPR at c: share of good lumisections (for channels: of channels without "
    "a fault) whose score reaches the threshold that a share c of the faulty ones reaches. Delay: lumisections from the onset "
    "of a fault to its first flag, mean over the faults found. The thresholds for delays and for channels named come from past "
    "good data. A fault of a channel that counts in every event does not change its count: the oracle, which knows the true "
    "gains and what can fail, shows how much any detector must miss. Precision: share of the flagged lumisections that are "
    "faulty, where 30 % or 1 % of all are. Operations are those of matrix products and convolutions, where they were counted; "
    "times are CPU times."
)


def printed(row: Mapping[str, Any]) -> list[str]:
    """A row of the first table, one entry for each of `COLUMNS`."""
    every = row["kinds"][ALL]
    figures = [*(every["lumisections"][name] for name in CAUGHT), every["channels"]["fpr_0.95"], every["channels"]["auc"]]
    figures += [every["delays"]["delay"], every["delays"]["never"], *(every["named"][name] for name in NAMED)]
    return [_label(row["detector"]), *(_figure(one) for one in figures), _figure(row["alarms"]["alarms"])]


def printed_precision(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of precisions, one entry for each of `PRECISION_COLUMNS`."""
    every = row["kinds"][ALL]
    figures = [every["lumisections"][name] for name in PRECISE]
    figures += [every["flagged"][name] for name in ("capture", *(f"precision_{share:g}" for share in PREVALENCES))]
    return [_label(row["detector"]), *(_figure(one) for one in figures)]


def printed_cost(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of costs, one entry for each of `COST_COLUMNS`."""
    cost = row["cost"]
    kept = [f"{cost['numbers']:.0f}", f"{cost['kept_bytes'] / 1e6:.2f}"] if "numbers" in cost else ["-", "-"]
    flops = cost.get("flops")
    counted = "-" if flops is None else f"{flops / 1e6:.2f}"
    return [_label(row["detector"]), *kept, counted, f"{cost['look_ms']:.2f}", f"{cost['learn_s']:.2f}"]


def printed_by_kind(row: Mapping[str, Any], what: str) -> list[str]:
    """A row of a table by kind of fault. what: title in `BY_KIND`."""
    side, name = BY_KIND[what]
    return [_label(row["detector"]), *(_number(row["kinds"][kind][side][name]["estimate"]) for kind in KINDS[:-1])]


def title(result: Mapping[str, Any]) -> str:
    """Stream, runs, seeds and allowed alarms in one line."""
    spec, seeds = result["spec"], ", ".join(str(seed) for seed in result["seeds"])
    where = f"tracks, {spec['depths']} depth(s), {spec['shift']} shifts"
    size = f"{spec['runs']} runs of {spec['lumisections']} lumisections, seeds {seeds} ({result['use']})"
    return f"{where}, {size}, {spec['alarms']:g} false alarm(s) per run"


def forgetting_lines(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each re-tested detector: AUC under early runs' conditions, at once and after the last run."""
    lines = []
    for row in result["detectors"]:
        matrices = [one["auc"] for one in row["replayed"] if len(one["auc"]) > 1]
        if not matrices:
            continue
        new = np.mean([of_run[i][i] for of_run in matrices for i in range(len(of_run) - 1)])
        last = np.mean([of_run[-1][i] for of_run in matrices for i in range(len(of_run) - 1)])
        lines.append(f"{row['detector']}: AUC {new:.3f} when the conditions were new, {last:.3f} after the last run")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    rows = result["detectors"]
    blocks = [f"{title(result)}\n\n" + _grid(COLUMNS, [printed(row) for row in rows])]
    blocks.append("Precision at a capture\n\n" + _grid(PRECISION_COLUMNS, [printed_precision(row) for row in rows]))
    blocks += [f"{what}\n\n" + _grid(KIND_COLUMNS, [printed_by_kind(row, what) for row in rows]) for what in BY_KIND]
    blocks.append("Cost\n\n" + _grid(COST_COLUMNS, [printed_cost(row) for row in rows]))
    if lines := forgetting_lines(result):
        blocks.append("Detectors re-tested on the conditions and faults of early runs:\n\n- " + "\n- ".join(lines))
    return "\n\n".join([*blocks, NOTE, *result["failed"]]) + "\n"


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write results.json, table.md and faults.png."""
    write_atomically(out / "results.json", json.dumps(nan_as_null(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    if result["detectors"]:
        draw_faults(out / "faults.png", result)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def _label(name: str) -> str:
    return f"{name} (bound)" if name == Oracle.name else name


def _figure(value: Mapping[str, Any]) -> str:
    if np.isnan(value["estimate"]):
        return "-"
    return f"{_number(value['estimate'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"
