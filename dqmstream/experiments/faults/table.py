"""The tables of the fault benchmark: each detector's figures with intervals, in all and by kind of fault; Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.faults.benchmark import FaultSpec, failures
from dqmstream.experiments.faults.figure import draw_faults
from dqmstream.experiments.faults.measures import CAPTURES, Tally
from dqmstream.experiments.faults.oracle import Oracle
from dqmstream.experiments.faults.track import ALL, KINDS
from dqmstream.experiments.json_numbers import plain
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.experiments.statistics import ClusteredInterval, Figures, clustered_figures
from dqmstream.storage.locks import write_atomically

Cells = Sequence[Mapping[str, Any]]

CAUGHT = (*(f"fpr_{capture:g}" for capture in CAPTURES), "auc")
NAMED = ("iou", "recall", "precision")
DELAY = ("delay", "at_once", "never")
ALARMS = ("alarms", "channel_alarms")

COLUMNS = [
    "detector", *(f"FPR at {capture:g}" for capture in CAPTURES), "AUC", "channels: FPR at .95", "AUC", "delay", "never found",
    "IoU", "recall", "precision", "alarms a run",
]  # fmt: skip
KIND_COLUMNS = ["detector", *KINDS[:-1]]
BY_KIND = {
    "FPR at .95 of the lumisections with one kind of fault": ("lumisections", "fpr_0.95"),
    "Share of the faults that were never flagged": ("delays", "never"),
    "Intersection over union of the channels named": ("named", "iou"),
}

NOTE = (
    "95 % intervals by runs (and streams) resampled. FPR: share of good lumisections (of channels without a fault) "
    "that score as high as a threshold which so many of the faulty ones reach; delay: lumisections from a fault's onset to the "
    "first flag, mean over those found; thresholds of delay and of channels named come from past good data. Faults that change "
    "nothing that can be seen (full channels) hold every detector: see the oracle, which knows true gains and what can fail."
)


def summarise(spec: FaultSpec, cells: Cells) -> dict[str, Any]:
    """All figures, ready for JSON. detectors: a row for each; by kind of fault, and "all": "lumisections" and "channels"
    (false- positive rates and AUC), "named", "delays", each figure {"estimate", "low", "high"}; and what its cells cost."""
    rows = []
    for name in spec.detectors:
        mine = [cell for cell in cells if cell["cell"]["detector"] == name and "error" not in cell]
        if mine:
            rows.append(_row(name, mine))
    return {
        "seeds": list(spec.seeds),
        "use": seed_use(spec.seeds),
        "spec": asdict(spec),
        "kinds": list(KINDS),
        "detectors": rows,
        "failed": failures(cells),
    }


def _row(name: str, cells: Cells) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        kinds[kind] = {
            side: _interval(cells, [_caught(cell[side][kind]) for cell in cells], CAUGHT)
            for side in ("lumisections", "channels")
        }
        kinds[kind]["named"] = _interval(cells, [_named(cell["named"][kind]) for cell in cells], NAMED)
        kinds[kind]["delays"] = _interval(cells, [_delays(cell, kind) for cell in cells], DELAY)
    forgot = [cell["replayed"]["forgetting"] for cell in cells if cell["replayed"]["forgetting"] is not None]
    return {
        "detector": name,
        "cells": len(cells),
        "kinds": kinds,
        "alarms": _interval(cells, [_alarms(cell["alarms"]) for cell in cells], ALARMS),
        "replayed": [cell["replayed"] for cell in cells],
        "forgetting": float(np.mean(forgot)) if forgot else None,
        "seconds": {step: float(np.mean([cell["seconds"][step] for cell in cells])) for step in ("look", "learn")},
    }


def _interval(cells: Cells, figures: Sequence[Figures], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = clustered_figures(figures, [len(cell["runs"]) for cell in cells])
    return {name: _short(one) for name, one in zip(names, found, strict=True)}


def _short(found: ClusteredInterval) -> dict[str, Any]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _caught(tally: Mapping[str, Any]) -> Figures:
    return Tally(np.array(tally["faulty"]), np.array(tally["good"])).figures


def _named(rows: Sequence[Sequence[float]]) -> Figures:
    n, iou, recall, precision, some = np.array(rows, dtype=np.float64).T
    return lambda weights: np.stack(
        [_ratio(weights, iou, n), _ratio(weights, recall, n), _ratio(weights, precision, some)], axis=1
    )


def _delays(cell: Mapping[str, Any], kind: str) -> Figures:
    faults, found, sum_of_delays, at_once = np.zeros((4, len(cell["runs"])))
    for run, of_kind, delay in cell["faults"]:
        if kind in (of_kind, ALL):
            faults[run] += 1
            found[run] += delay is not None
            sum_of_delays[run] += delay or 0
            at_once[run] += delay == 0
    return lambda weights: np.stack(
        [_ratio(weights, sum_of_delays, found), _ratio(weights, at_once, faults), _ratio(weights, faults - found, faults)],
        axis=1,
    )


def _alarms(rows: Sequence[Sequence[float]]) -> Figures:
    share, lumisections, channels = np.array(rows, dtype=np.float64).T
    return lambda weights: np.stack([_ratio(weights, lumisections, share), _ratio(weights, channels, share)], axis=1)


def _ratio(weights: np.ndarray, over: np.ndarray, under: np.ndarray) -> np.ndarray:
    below = weights @ under
    return np.divide(weights @ over, below, out=np.full(len(weights), np.nan), where=below > 0)


def printed(row: Mapping[str, Any]) -> list[str]:
    """A line of the first table."""
    every = row["kinds"][ALL]
    figures = [*(every["lumisections"][name] for name in CAUGHT), every["channels"]["fpr_0.95"], every["channels"]["auc"]]
    figures += [every["delays"]["delay"], every["delays"]["never"], *(every["named"][name] for name in NAMED)]
    return [_called(row["detector"]), *(_figure(one) for one in figures), _figure(row["alarms"]["alarms"])]


def printed_by_kind(row: Mapping[str, Any], what: str) -> list[str]:
    """A line of a table by kind of fault; what: a title of `BY_KIND`."""
    side, name = BY_KIND[what]
    return [_called(row["detector"]), *(_number(row["kinds"][kind][side][name]["estimate"]) for kind in KINDS[:-1])]


def title(result: Mapping[str, Any]) -> str:
    """What was run."""
    spec, seeds = result["spec"], ", ".join(str(seed) for seed in result["seeds"])
    return (
        f"tracks, {spec['runs']} runs of {spec['lumisections']} lumisections, seeds {seeds} ({result['use']}), "
        f"{spec['alarms']:g} false alarm(s) a run"
    )


def forgotten(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each detector that learns: AUC under early runs' conditions, when they were new and after the last run."""
    lines = []
    for row in result["detectors"]:
        matrices = [one["auc"] for one in row["replayed"] if len(one["auc"]) > 1]
        if not matrices:
            continue
        new = np.mean([found[i][i] for found in matrices for i in range(len(found) - 1)])
        last = np.mean([found[-1][i] for found in matrices for i in range(len(found) - 1)])
        lines.append(f"{row['detector']}: AUC {new:.3f} when the conditions were new, {last:.3f} after the last run")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    rows = result["detectors"]
    blocks = [f"{title(result)}\n\n" + _lines(COLUMNS, [printed(row) for row in rows])]
    blocks += [f"{what}\n\n" + _lines(KIND_COLUMNS, [printed_by_kind(row, what) for row in rows]) for what in BY_KIND]
    if again := forgotten(result):
        blocks.append("Early runs' conditions and faults on the detector as it is later:\n\n- " + "\n- ".join(again))
    return "\n\n".join([*blocks, NOTE, *result["failed"]]) + "\n"


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write results.json, table.md and faults.png."""
    write_atomically(out / "results.json", json.dumps(plain(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    if result["detectors"]:
        draw_faults(out / "faults.png", result)


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def _called(name: str) -> str:
    return f"{name} (bound)" if name == Oracle.name else name


def _figure(value: Mapping[str, Any]) -> str:
    if np.isnan(value["estimate"]):
        return "-"
    return f"{_number(value['estimate'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"
