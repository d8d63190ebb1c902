"""The figures of a benchmark's tables, with intervals, guessing and the difference to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.experiments.benchmark.bounds import BOUNDS
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.cell_figures import CellFigures, figures_of
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec, Variant
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.experiments.statistics import FiguresByRun, chance_interval, clustered_mean, holm, paired_difference
from dqmstream.learners.splits import WARNING_RANDOM

Finished = Sequence[tuple[BenchmarkCell, CellFigures]]
"""The finished cells of a row."""


def summarise(benchmark: Benchmark, records: Mapping[BenchmarkCell, Record]) -> dict[str, Any]:
    """All figures of a benchmark, ready for JSON. benchmark: checked; records: of all its cells.

    A table has an entry for each stream, with a row for each variant of which a cell is finished. An interval is {"estimate",
    "low", "high"}, 95 %, by resampling runs (and streams, if there are several).

    accuracy, auc: after the last run, mean over runs. worth: number of independent lumisections behind the accuracy. guessing:
    central 95 % of the accuracy of a strategy that knows nothing and assigns neighbours to the same run as often. of_ideal:
    accuracy divided by that of `ideal`, if the table has it. beside: difference of accuracy to the row that the table compares
    with, paired by run, with its p-value after Holm's correction over the rows of the stream. lumisections, flops: of all
    learning of a cell, repeats counted; learn_s: its seconds. commits, codes: of the code that computed the row (`provenance`).
    """
    failed = [{**asdict(cell), "error": record["error"]} for cell, record in records.items() if "error" in record]
    return {"tables": [_table(spec, records) for spec in benchmark.tables], "failed": failed}


def _table(spec: TableSpec, records: Mapping[BenchmarkCell, Record]) -> dict[str, Any]:
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


def _stream(spec: TableSpec, stream: str, records: Mapping[BenchmarkCell, Record]) -> list[dict[str, Any]]:
    by_row = {
        row: [(cell, figures_of(found)) for cell in spec.cells_of(row, stream) if "error" not in (found := records[cell])]
        for row in spec.rows()
    }
    by_row = {row: found for row, found in by_row.items() if found}
    accuracies = {row.label: _by_run(found, "accuracy_by_run") for row, found in by_row.items()}
    rows = [_row(row, found, accuracies) for row, found in by_row.items()]
    _compare(rows, accuracies, spec.against)
    return rows


def _row(row: Variant, finished: Finished, accuracies: Mapping[str, FiguresByRun]) -> dict[str, Any]:
    accuracy, ideal = clustered_mean(accuracies[row.label]), accuracies.get(BOUNDS[0])
    worth = _worth(finished)

    def mean(name: str) -> float | None:
        known = [value for _, figures in finished if (value := getattr(figures, name)) is not None]
        return float(np.mean(known)) if known else None

    return {
        **asdict(row),
        "bound": row.bound,
        "cells": len(finished),
        "seeds": sorted({cell.seed for cell, _ in finished}),
        "accuracy": asdict(accuracy),
        "worth": worth,
        "guessing": asdict(chance_interval(len(finished[0][1].run), worth)),
        "auc": asdict(clustered_mean(_by_run(finished, "auc_by_run"))),
        "forgetting": asdict(clustered_mean(_by_run(finished, "forgetting_by_run"))),
        "any_time_accuracy": mean("any_time_accuracy"),
        "new_run_auc": mean("new_run_auc"),
        "of_ideal": accuracy.estimate / clustered_mean(ideal).estimate if ideal else None,
        "ece": mean("ece"),
        "ece_calibrated": mean("ece_calibrated"),
        "kept_bytes": mean("memory_bytes"),
        "state_bytes": mean("state_bytes"),
        "lumisections": mean("lumisections_trained"),
        "flops": mean("flops"),
        "learn_s": mean("learn_seconds"),
        "commits": sorted({figures.commit for _, figures in finished}),
        "codes": sorted({figures.code for _, figures in finished}),
    }


def _compare(rows: Sequence[dict[str, Any]], accuracies: Mapping[str, FiguresByRun], against: str) -> None:
    """Add to each row its difference to the row to compare with, on the same runs of the same streams."""
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


def _by_run(finished: Finished, name: str) -> FiguresByRun:
    """A figure of each run, for each stream and order; averaged over folds, which evaluate the same runs."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    runs: dict[tuple[int, int], list[int]] = {}
    for cell, figures in finished:
        key = cell.seed, cell.order
        found.setdefault(key, []).append(np.array(getattr(figures, name), dtype=float))
        runs[key] = figures.run
    means = {key: np.mean(folds, axis=0) for key, folds in found.items()}
    return {key: dict(zip(runs[key], mean.tolist(), strict=False)) for key, mean in means.items()}


def _worth(finished: Finished) -> float:
    """Number of independent lumisections behind the last accuracies: summed over streams and folds, averaged over orders."""
    orders = len({cell.order for cell, _ in finished})
    return float(sum(figures.worth for _, figures in finished)) / orders
