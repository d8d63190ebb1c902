"""The table of a benchmark: each figure with its interval, beside both bounds, guessing, and the best baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.benchmark import Spec
from dqmstream.experiments.bounds import BOUNDS
from dqmstream.experiments.figures_benchmark import draw_accuracies
from dqmstream.experiments.plain import plain
from dqmstream.experiments.statistics import chance_interval, clustered_mean, holm, paired_difference
from dqmstream.experiments.streams import seed_use
from dqmstream.learners.history import Line, figures
from dqmstream.learners.metrics import drops, matrix
from dqmstream.learners.splits import WARNING_RANDOM
from dqmstream.storage.locks import write_atomically

Key = tuple[int, int]
"""Seed of the stream, number of the order."""

YARDSTICK = "gain_map"
"""What every other strategy is compared with, run by run: hard to beat, and it forgets nothing."""


def summarise(spec: Spec, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a benchmark, ready for JSON.

    An interval is {"estimate", "low", "high"}, 95 %, by resampling runs (and streams, where there is more than one). accuracy,
    auc: of the last row, mean over runs. worth: independent lumisections behind it; guessing: where the accuracy of a strategy
    that knows nothing and names neighbours as much alike lies 95 times of 100. of_ideal: accuracy over that of `ideal`, where
    it is there. beside: difference of accuracy to the gain map, paired by run, with its p-value after Holm's correction over
    the strategies of the stream.
    """
    spec = spec.checked()
    failed = [{**cell["cell"], "error": cell["error"]} for cell in cells if "error" in cell]
    tables = []
    for stream in spec.streams:
        whole = [cell for cell in cells if cell["cell"]["stream"] == stream and "lines" in cell]
        by_name = {
            name: [cell for cell in whole if cell["cell"]["strategy"] == name]
            for name in spec.strategies
            if any(cell["cell"]["strategy"] == name for cell in whole)
        }
        tables.append(_table(stream, spec, by_name))
    return {
        "seeds": list(spec.seeds),
        "use": seed_use(spec.seeds),
        "spec": asdict(spec),
        "tables": tables,
        "failed": failed,
        "warning": WARNING_RANDOM if spec.split == "random" else "",
    }


def _table(stream: str, spec: Spec, by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    accuracies = {name: _by_run(cells, lambda lines: _last(lines, "accuracy")) for name, cells in by_name.items()}
    rows = [_row(name, cells, accuracies) for name, cells in by_name.items()]
    _compare(rows, accuracies)
    return {
        "stream": stream,
        "runs": spec.runs,
        "rows": rows,
    }


def _row(
    name: str, cells: Sequence[Mapping[str, Any]], accuracies: Mapping[str, Mapping[Key, Mapping[int, float]]]
) -> dict[str, Any]:
    found = [figures(cell["lines"]) for cell in cells]
    calibration = [one["calibration"] for one in found if one["calibration"]]
    ideal = accuracies.get(BOUNDS[0])
    accuracy = clustered_mean(accuracies[name])
    last = [cell["lines"][-1] for cell in cells]
    return {
        "strategy": name,
        "bound": name in BOUNDS,
        "cells": len(cells),
        "accuracy": asdict(accuracy),
        "worth": _worth(cells),
        "guessing": asdict(chance_interval(len(last[0]["accuracy"]), _worth(cells))),
        "auc": asdict(clustered_mean(_by_run(cells, lambda lines: _last(lines, "auc")))),
        "forgetting": asdict(clustered_mean(_by_run(cells, _drops))),
        "any_time_accuracy": _mean(one["any_time_accuracy"] for one in found),
        "new_run_auc": _mean(one["new_run_auc"] for one in found),
        "of_ideal": accuracy.estimate / clustered_mean(ideal).estimate if ideal else None,
        "ece": _mean(one["ece"] for one in calibration),
        "ece_calibrated": _mean(one["ece_calibrated"] for one in calibration),
        "memory_bytes": _mean(line.get("memory_bytes") for line in last),
        "state_bytes": _mean(line.get("state_bytes") for line in last),
        "flops": _mean(one["flops"] for one in found),
        "learn_s": _mean(sum(line["seconds"]["learn"] for line in cell["lines"]) for cell in cells if "seconds" in last[0]),
    }


def _compare(rows: Sequence[dict[str, Any]], accuracies: Mapping[str, Mapping[Key, Mapping[int, float]]]) -> None:
    """Set each strategy beside the yardstick, on the same runs of the same streams."""
    others = [row for row in rows if not row["bound"] and row["strategy"] != YARDSTICK]
    for row in rows:
        row["beside"] = None
    if YARDSTICK not in accuracies or not others:
        return
    paired = [paired_difference(accuracies[row["strategy"]], accuracies[YARDSTICK]) for row in others]
    for row, found, p in zip(others, paired, holm([one.p for one in paired]), strict=True):
        row["beside"] = {**asdict(found.interval), "p_holm": float(p), "flipped": found.flipped}


def _by_run(cells: Sequence[Mapping[str, Any]], of_runs: Callable[[Sequence[Line]], np.ndarray]) -> dict[Key, dict[int, float]]:
    """A figure of each run, for each stream and order; over folds, which judge the same runs again, it is averaged."""
    found: dict[Key, list[np.ndarray]] = {}
    runs: dict[Key, list[int]] = {}
    for cell in cells:
        key = cell["cell"]["seed"], cell["cell"]["order"]
        found.setdefault(key, []).append(of_runs(cell["lines"]))
        runs[key] = [line["run"] for line in cell["lines"]]
    means = {key: np.mean(folds, axis=0) for key, folds in found.items()}
    return {key: dict(zip(runs[key], mean.tolist(), strict=False)) for key, mean in means.items()}


def _last(lines: Sequence[Line], name: str) -> np.ndarray:
    return np.array(lines[-1][name], dtype=float)


def _drops(lines: Sequence[Line]) -> np.ndarray:
    """What each run but the last has lost since it was known best: shape (runs - 1,), empty before three runs."""
    return np.array(drops(matrix([line["accuracy"] for line in lines]), max))


def _worth(cells: Sequence[Mapping[str, Any]]) -> float:
    """Independent lumisections behind the last accuracies: streams and folds add up, orders of the same runs do not."""
    orders = len({cell["cell"]["order"] for cell in cells})
    return sum(cell["worth"] for cell in cells) / orders


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


COLUMNS = ("", "accuracy", "guessing", "of ideal", "AUC", "forgetting", "ECE", "- gain map", "kB", "s")


def printed(row: Mapping[str, Any]) -> list[str]:
    """A row as text, one entry for each of `COLUMNS`."""
    beside = row["beside"]
    return [
        row["strategy"] + (" (bound)" if row["bound"] else ""),
        _interval(row["accuracy"]),
        f"{_number(row['guessing']['low'])}-{_number(row['guessing']['high'])}",
        _number(row["of_ideal"]),
        _interval(row["auc"]),
        _interval(row["forgetting"]),
        _number(row["ece_calibrated"]),
        "" if beside is None else f"{_interval(beside)}{' *' if _differs(beside) else ''}",
        "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1000:.0f}",
        "" if row["learn_s"] is None else f"{row['learn_s']:.1f}",
    ]


def _differs(beside: Mapping[str, Any]) -> bool:
    """Both must say so: flipping the runs of a few streams gives p-values that are too small (`paired_difference`)."""
    return bool(beside["p_holm"] < 0.05 and not beside["low"] <= 0 <= beside["high"])


def _interval(value: Mapping[str, float]) -> str:
    if not math.isfinite(value["estimate"]):
        return ""
    return f"{_number(value['estimate'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def title(table: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What stands above a stream's table."""
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    changed = "".join(f", {name} {value}" for name, value in result["spec"]["recipe"].items())
    guessing = _number(1 / table["runs"])
    return f"{table['stream']}: {table['runs']} runs, seeds {seeds} ({result['use']}){changed}, guessing {guessing}"


NOTE = (
    "95 % intervals, by runs and streams resampled. guessing: where a strategy that knows nothing and names neighbouring "
    "lumisections as much alike lies 95 times of 100; too wide for one that knows something. ECE after a temperature from "
    "validation. - gain map: accuracy minus that of the gain map, paired, * where its interval is without 0 and p < .05 after "
    "Holm's correction. kB: kept of past runs. s: learning, on one thread."
)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    blocks = []
    for table in result["tables"]:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(printed(row) for row in table["rows"])]
        blocks.append(f"{title(table, result)}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([*blocks, NOTE, *([result["warning"]] if result["warning"] else [])]) + "\n"


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write results.json, table.md and accuracy.png."""
    write_atomically(out / "results.json", json.dumps(plain(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    draw_accuracies(out / "accuracy.png", result["tables"])
