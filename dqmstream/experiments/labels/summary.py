"""The figures of the benchmark of labels, with intervals, and the order of the methods by what they forget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.labels.cell import LabelCell
from dqmstream.experiments.labels.spec import LabelSpec
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.experiments.statistics import FiguresByRun, clustered_mean, paired_difference
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.label_results import accuracy_matrix, auc_matrix, label_figures
from dqmstream.learners.evaluation.metrics import Matrix, averages, drops

ORDER = (("naive", "ewc"), ("ewc", "replay"), ("naive", "replay"))
"""Pairs whose forgetting is compared: the first should forget more."""


def summarise(spec: LabelSpec, records: Mapping[LabelCell, Record]) -> dict[str, Any]:
    """All figures, ready for JSON. spec: checked; records: of all its cells.

    "splits" has an entry for each split, with "rows", one a strategy. An interval is {"estimate", "low", "high"}, 95 %, by
    resampling periods (and streams, if there are several). auc, accuracy: after the last period, mean over periods.
    forgetting_auc, forgetting: highest so far minus the last. curve: mean AUC over the periods so far, mean over the streams.
    "order": differences of forgetting of AUC and of accuracy, paired by period.
    """
    return {
        "task": "labels",
        "spec": {**asdict(spec), "recipe": dict(spec.recipe)},
        "use": seed_use(spec.seeds),
        "splits": [_split(spec, split, records) for split in spec.splits],
        "failed": [{**asdict(cell), "error": record["error"]} for cell, record in records.items() if "error" in record],
    }


def _split(spec: LabelSpec, split: str, records: Mapping[LabelCell, Record]) -> dict[str, Any]:
    of_rows: dict[str, dict[int, list[HistoryLine]]] = {}
    for strategy in spec.strategies:
        for seed in spec.seeds:
            cell = spec.cell(split, seed, strategy)
            record = records[cell]
            if "error" not in record:
                lines = [HistoryLine.from_json(line) for line in record["lines"]]
                of_rows.setdefault(cell.strategy, {})[seed] = lines
    order = [
        one for what, values in (("AUC", auc_matrix), ("accuracy", accuracy_matrix)) for one in _order(of_rows, what, values)
    ]
    return {"split": split, "rows": [_row(name, found) for name, found in of_rows.items()], "order": order}


def _order(
    of_rows: Mapping[str, Mapping[int, list[HistoryLine]]], what: str, values: Callable[[Sequence[HistoryLine]], Matrix]
) -> list[dict[str, Any]]:
    """Differences of what the pairs of `ORDER` forget. values: gives the matrix that `what` names."""
    forgotten = {name: {seed: lost(values(lines)) for seed, lines in found.items()} for name, found in of_rows.items()}
    order = []
    for more, less in ORDER:
        if more in forgotten and less in forgotten and forgotten[more].keys() == forgotten[less].keys():
            found = paired_difference(_by_period(forgotten[more]), _by_period(forgotten[less]))
            pair = {"more": more, "less": less, "what": what}
            order.append({**pair, **asdict(found.interval), "p": found.p, "flipped": found.flipped})
    return order


def lost(values: Matrix) -> list[float]:
    """What was lost on each period but the last since its best."""
    return drops(values, max)


def _row(name: str, of_seeds: Mapping[int, list[HistoryLine]]) -> dict[str, Any]:
    last = {seed: lines[-1] for seed, lines in of_seeds.items() if lines}
    figures = [label_figures(lines) for lines in of_seeds.values()]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def interval(by_seed: Mapping[int, Sequence[float]]) -> dict[str, Any]:
        return asdict(clustered_mean(_by_period(by_seed)))

    curves = [averages(auc_matrix(lines)) for lines in of_seeds.values()]
    shortest = min(map(len, curves))
    return {
        "strategy": name,
        "seeds": sorted(of_seeds),
        "periods": {str(seed): len(lines) for seed, lines in of_seeds.items()},
        "auc": interval({seed: line.auc or [] for seed, line in last.items()}),
        "accuracy": interval({seed: line.accuracy or [] for seed, line in last.items()}),
        "forgetting_auc": interval({seed: lost(auc_matrix(lines)) for seed, lines in of_seeds.items()}),
        "forgetting": interval({seed: lost(accuracy_matrix(lines)) for seed, lines in of_seeds.items()}),
        "backward_transfer_auc": mean([one["backward_transfer_auc"] for one in figures]),
        "forward_transfer_auc": mean([one["forward_transfer_auc"] for one in figures]),
        "ece": mean([line.calibration.ece for line in last.values() if line.calibration]),
        "ece_calibrated": mean([line.calibration.ece_calibrated for line in last.values() if line.calibration]),
        "memory_bytes": mean([line.memory_bytes for line in last.values()]),
        "state_bytes": mean([line.state_bytes for line in last.values()]),
        "learn_s": mean([sum(line.seconds.get("learn", 0.0) for line in lines) for lines in of_seeds.values()]),
        "curve": [mean([curve[t] for curve in curves]) for t in range(shortest)],
    }


def _by_period(of_seeds: Mapping[int, Sequence[float]]) -> FiguresByRun:
    return {(seed, 0): dict(enumerate(values)) for seed, values in of_seeds.items() if len(values)}
