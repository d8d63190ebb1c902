"""The figures of a benchmark's tables, with intervals, guessing and the difference to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.experiments.benchmark.bounds import BOUNDS
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.cell_figures import CellFigures, FiguresByLast, figures_of
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec, Variant
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.experiments.statistics import FiguresByRun, chance_interval, clustered_mean, holm, paired_difference
from dqmstream.learners.evaluation.history_line import EVERY_LENGTH
from dqmstream.learners.splits import WARNING_RANDOM

Finished = Sequence[tuple[BenchmarkCell, CellFigures]]
"""The finished cells of a row."""


def summarise(benchmark: Benchmark, records: Mapping[BenchmarkCell, Record]) -> dict[str, Any]:
    """All figures of a benchmark, ready for JSON. benchmark: checked; records: of all its cells.

    A table has an entry for each stream, with a row for each variant of which a cell is finished. An interval is {"estimate",
    "low", "high"}, 95 %, by resampling runs (and streams, if there are several).

    runs_learnt: how many runs of a stream were learnt, those that are too short left out, each number once. accuracy, auc:
    after the last run, mean over runs. worth: number of independent lumisections behind the accuracy. guessing: central 95 %
    of the accuracy of a strategy that knows nothing and assigns neighbours to the same run as often. of_ideal: accuracy divided
    by that of `ideal`, if the table has it. beside: difference of accuracy to the row that the table compares with, paired by
    run, with its p-value after Holm's correction over the rows of the stream. lumisections, flops: of all learning of a cell,
    repeats counted; learn_s: its seconds. commits, codes: of the code that computed the row (`provenance`).
    by_last: the figures where the last n lumisections name the run, by n as text, n = 1 among them; empty where a cell of the
    row lacks them. Lumisections that share neighbours are not independent; the intervals resample runs and streams.
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
    rows = [_row(row, found, accuracies) | {"by_last": _by_last(found)} for row, found in by_row.items()]
    _compare_by_last(rows)
    _compare(rows, accuracies, spec.against)
    return rows


def _row(row: Variant, finished: Finished, accuracies: Mapping[str, FiguresByRun]) -> dict[str, Any]:
    accuracy, ideal = clustered_mean(accuracies[row.label]), accuracies.get(BOUNDS[0])
    worth = _worth(finished)

    def mean(name: str) -> float | None:
        return _mean([getattr(figures, name) for _, figures in finished])

    return {
        **asdict(row),
        "bound": row.bound,
        "cells": len(finished),
        "seeds": sorted({cell.seed for cell, _ in finished}),
        "runs_learnt": sorted({len(figures.run) for _, figures in finished}),
        "accuracy": asdict(accuracy),
        "worth": worth,
        "guessing": asdict(chance_interval(_runs(finished), worth)),
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


def _by_last(finished: Finished) -> dict[str, dict[str, Any]]:
    """Figures by the last n lumisections. Those of n = 1 are the row's own."""
    every: dict[str, dict[str, Any]] = {}
    for n in EVERY_LENGTH:
        of_n = [found for _, figures in finished if (found := _of_length(figures, n)) is not None]
        if len(of_n) < len(finished):
            continue
        worth = None if any(found.worth is None for found in of_n) else _worth(finished, n)
        every[str(n)] = {
            "summed": _mean([1.0 if isinstance(found, CellFigures) else found.summed for found in of_n]),
            "accuracy": asdict(clustered_mean(_by_run(finished, "accuracy_by_run", n))),
            "worth": worth,
            "guessing": None if worth is None else asdict(chance_interval(_runs(finished), worth)),
            "auc": asdict(clustered_mean(_by_run(finished, "auc_by_run", n))),
            "forgetting": asdict(clustered_mean(_by_run(finished, "forgetting_by_run", n))),
            "ece": _mean([found.ece for found in of_n]),
            "ece_calibrated": _mean([found.ece_calibrated for found in of_n]),
        }
    return every if len(every) > 1 else {}


def _of_length(figures: CellFigures, n: int) -> CellFigures | FiguresByLast | None:
    return figures if n == 1 else next((one for one in figures.by_last if one.lumisections == n), None)


def _compare_by_last(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the figures by the last n of each row its accuracy divided by that of `ideal`; None without that row."""
    ideal: Mapping[str, Any] = next((row["by_last"] for row in rows if row["label"] == BOUNDS[0]), {})
    for row in rows:
        for n, found in row["by_last"].items():
            best = ideal[n]["accuracy"]["estimate"] if n in ideal else None
            found["of_ideal"] = found["accuracy"]["estimate"] / best if best else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


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


def _by_run(finished: Finished, name: str, n: int = 1) -> FiguresByRun:
    """A figure of each run that has it, for each stream and order; averaged over folds, which evaluate the same runs.

    n: lumisections that name the run.
    """
    found: dict[tuple[int, int], dict[int, list[float]]] = {}
    for cell, figures in finished:
        of_stream = found.setdefault((cell.seed, cell.order), {})
        for run, value in zip(figures.run, getattr(_of_length(figures, n), name), strict=False):
            if value is not None:
                of_stream.setdefault(run, []).append(value)
    return {key: {run: float(np.mean(folds)) for run, folds in runs.items()} for key, runs in found.items()}


def _runs(finished: Finished) -> float:
    """Number of runs of which guessing names the right one as often as over these cells; some cells leave out short runs."""
    return float(1 / np.mean([1 / len(figures.run) for _, figures in finished]))


def _worth(finished: Finished, n: int = 1) -> float:
    """Number of independent lumisections behind the last accuracies: summed over streams and folds, averaged over orders."""
    orders = len({cell.order for cell, _ in finished})
    return float(sum(found.worth or 0.0 for _, figures in finished if (found := _of_length(figures, n)))) / orders
