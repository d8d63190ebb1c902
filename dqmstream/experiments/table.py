"""The figures of a benchmark: each with its interval, beside both bounds, guessing, and the best baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.experiments.bounds import BOUNDS
from dqmstream.experiments.cells import Cell
from dqmstream.experiments.spec import Benchmark, Spec, Variant
from dqmstream.experiments.statistics import chance_interval, clustered_mean, holm, paired_difference
from dqmstream.experiments.stored import Record
from dqmstream.experiments.streams import seed_use
from dqmstream.learners.history import Line, figures
from dqmstream.learners.metrics import drops, matrix
from dqmstream.learners.splits import WARNING_RANDOM

ByRun = dict[tuple[int, int], dict[int, float]]
"""Seed of the stream and number of the order -> run -> a figure of it."""


def summarise(benchmark: Benchmark, records: Mapping[Cell, Record]) -> dict[str, Any]:
    """All figures of a benchmark, ready for JSON. benchmark: checked; records: of all its cells.

    A table has an entry for each stream, with a row for each variant of which a cell is finished. An interval is {"estimate",
    "low", "high"}, 95 %, by resampling runs (and streams, where there is more than one). accuracy, auc: of the last row, mean
    over runs. worth: independent lumisections behind it; guessing: where the accuracy of a strategy that knows nothing and
    names neighbours as much alike lies 95 times of 100. of_ideal: accuracy over that of `ideal`, where it is there. beside:
    difference of accuracy to the row that the table compares with, paired by run, with its p-value after Holm's correction over
    the rows of the stream. lumisections, flops: of all learning of a cell, each as often as it was looked at; learn_s: its
    seconds. commits, codes: of the code that computed the row (`provenance`).
    """
    failed = [{**asdict(cell), "error": record["error"]} for cell, record in records.items() if "error" in record]
    return {"tables": [_table(spec, records) for spec in benchmark.tables], "failed": failed}


def _table(spec: Spec, records: Mapping[Cell, Record]) -> dict[str, Any]:
    rows = {stream: _stream(spec, stream, records) for stream in spec.streams}
    missing = sum("error" in records[cell] for cell in spec.cells())
    return {
        "name": spec.name,
        "title": spec.title,
        "use": seed_use(spec.seeds),
        "spec": asdict(spec),
        "missing": missing,
        "warning": WARNING_RANDOM if spec.split == "random" else "",
        "streams": [{"stream": stream, "rows": found} for stream, found in rows.items()],
    }


def _stream(spec: Spec, stream: str, records: Mapping[Cell, Record]) -> list[dict[str, Any]]:
    by_row = {row: [found for cell in spec.cells_of(row, stream) if "lines" in (found := records[cell])] for row in spec.rows()}
    by_row = {row: found for row, found in by_row.items() if found}
    accuracies = {row.label: _by_run(found, lambda lines: _last(lines, "accuracy")) for row, found in by_row.items()}
    rows = [_row(row, found, accuracies) for row, found in by_row.items()]
    _compare(rows, accuracies, spec.against)
    return rows


def _row(row: Variant, records: Sequence[Record], accuracies: Mapping[str, ByRun]) -> dict[str, Any]:
    found = [figures(record["lines"]) for record in records]
    calibration = [one["calibration"] for one in found if one["calibration"]]
    accuracy, ideal = clustered_mean(accuracies[row.label]), accuracies.get(BOUNDS[0])
    lines = [record["lines"] for record in records]
    worth = _worth(records)
    return {
        **asdict(row),
        "bound": row.bound,
        "cells": len(records),
        "seeds": sorted({record["cell"]["seed"] for record in records}),
        "accuracy": asdict(accuracy),
        "worth": worth,
        "guessing": asdict(chance_interval(len(lines[0][-1]["accuracy"]), worth)),
        "auc": asdict(clustered_mean(_by_run(records, lambda lines: _last(lines, "auc")))),
        "forgetting": asdict(clustered_mean(_by_run(records, lost))),
        "any_time_accuracy": _mean(one["any_time_accuracy"] for one in found),
        "new_run_auc": _mean(one["new_run_auc"] for one in found),
        "of_ideal": accuracy.estimate / clustered_mean(ideal).estimate if ideal else None,
        "ece": _mean(one["ece"] for one in calibration),
        "ece_calibrated": _mean(one["ece_calibrated"] for one in calibration),
        "kept_bytes": _mean(of_cell[-1].get("memory_bytes") for of_cell in lines),
        "state_bytes": _mean(of_cell[-1].get("state_bytes") for of_cell in lines),
        "lumisections": _mean(looked_at(of_cell) for of_cell in lines),
        "flops": _mean(one["flops"] for one in found),
        "learn_s": _mean(learn_s(of_cell) for of_cell in lines),
        "commits": sorted({record["commit"] for record in records}),
        "codes": sorted({record["code"] for record in records}),
    }


def _compare(rows: Sequence[dict[str, Any]], accuracies: Mapping[str, ByRun], against: str) -> None:
    """Set each row beside the one to compare with, on the same runs of the same streams."""
    for row in rows:
        row["beside"] = None
    pairs = []
    for row in rows:
        common = accuracies[row["label"]].keys() & accuracies.get(against, {}).keys()
        if not row["bound"] and row["label"] != against and common:
            ours, theirs = ({key: accuracies[label][key] for key in common} for label in (row["label"], against))
            pairs.append((row, paired_difference(ours, theirs)))
    if pairs:
        for (row, found), p in zip(pairs, holm([found.p for _, found in pairs]), strict=True):
            row["beside"] = {**asdict(found.interval), "p_holm": float(p), "flipped": found.flipped}


def _by_run(records: Sequence[Record], of_runs: Callable[[Sequence[Line]], np.ndarray]) -> ByRun:
    """A figure of each run, for each stream and order; over folds, which judge the same runs again, it is averaged."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    runs: dict[tuple[int, int], list[int]] = {}
    for record in records:
        key = record["cell"]["seed"], record["cell"]["order"]
        found.setdefault(key, []).append(of_runs(record["lines"]))
        runs[key] = [line["run"] for line in record["lines"]]
    means = {key: np.mean(folds, axis=0) for key, folds in found.items()}
    return {key: dict(zip(runs[key], mean.tolist(), strict=False)) for key, mean in means.items()}


def _last(lines: Sequence[Line], name: str) -> np.ndarray:
    return np.array(lines[-1][name], dtype=float)


def lost(lines: Sequence[Line]) -> np.ndarray:
    """What each run but the last has lost since it was known best: shape (runs - 1,), empty before three runs."""
    return np.array(drops(matrix([line["accuracy"] for line in lines]), max))


def looked_at(lines: Sequence[Line]) -> int | None:
    """Lumisections that learning looked at, each as often as it was; None for a bound, which learns nothing."""
    return sum(line["samples"] for line in lines) if "samples" in lines[0] else None


def learn_s(lines: Sequence[Line]) -> float | None:
    """Seconds of learning, on one thread; None for a bound."""
    return sum(line["seconds"]["learn"] for line in lines) if "seconds" in lines[0] else None


def _worth(records: Sequence[Record]) -> float:
    """Independent lumisections behind the last accuracies: streams and folds add up, orders of the same runs do not."""
    orders = len({record["cell"]["order"] for record in records})
    return float(sum(record["worth"] for record in records)) / orders


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
