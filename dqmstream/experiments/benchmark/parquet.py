"""results.parquet of a benchmark: a row per cell, written, and read back to reuse the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dqmstream.errors import StateError
from dqmstream.experiments.benchmark.bounds import BOUNDS
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.cell_figures import CellFigures, FiguresByLast, figures_of
from dqmstream.experiments.benchmark.spec import Benchmark
from dqmstream.learners.evaluation.history_line import LENGTHS
from dqmstream.learners.registry import recipe_of, strategy_info

FILE = "results.parquet"

_REAL, _WHOLE, _TEXT = pa.float64(), pa.int64(), pa.string()

_BY_LAST = {
    name: pa.list_(_REAL) if name.endswith("_by_run") else _REAL
    for name in (field.name for field in fields(FiguresByLast))
    if name != "lumisections"
}
"""Columns by the last n lumisections; each n has them with its suffix (`_of_last`)."""


def _of_last(name: str, n: int) -> str:
    """The column of a figure by the last n lumisections: accuracy_last_8."""
    return f"{name}_last_{n}"


SCHEMA = pa.schema(
    [
        ("tables", pa.list_(_TEXT)),  # names of the tables with this cell
        ("stream", _TEXT), ("seed", _WHOLE), ("order", _WHOLE), ("strategy", _TEXT), ("runs", _WHOLE), ("lumisections", _WHOLE),
        ("memory_budget_bytes", _WHOLE), ("evaluation_samples", _WHOLE), ("split", _TEXT), ("fold", _WHOLE),
        ("recipe", _TEXT),  # changes to the strategy's recipe, as JSON
        ("model", _TEXT),  # null if there is no network
        ("run", pa.list_(_WHOLE)),  # order of the lists; forgetting lacks the last run
        ("accuracy_by_run", pa.list_(_REAL)), ("auc_by_run", pa.list_(_REAL)), ("forgetting_by_run", pa.list_(_REAL)),
        ("accuracy", _REAL), ("auc", _REAL), ("forgetting", _REAL), ("any_time_accuracy", _REAL), ("new_run_auc", _REAL),
        ("ece", _REAL), ("ece_calibrated", _REAL),
        ("worth", _REAL),  # independent lumisections behind the accuracy
        ("lumisections_trained", _WHOLE), ("flops", _REAL), ("memory_bytes", _WHOLE), ("state_bytes", _WHOLE),
        ("seconds", _REAL), ("learn_seconds", _REAL),
        *((_of_last(name, n), kind) for n in LENGTHS for name, kind in _BY_LAST.items()),
        ("versions", pa.map_(_TEXT, _TEXT)), ("commit", _TEXT), ("code", _TEXT), ("error", _TEXT),
    ]
)  # fmt: skip
"""Columns of results.parquet. Figures of a cell that failed are null."""


def cell_table(benchmark: Benchmark, records: Mapping[BenchmarkCell, Mapping[str, Any]]) -> pa.Table:
    """A table with a row for each cell of the benchmark and the columns of `SCHEMA`."""
    of_table = {spec.name: set(spec.cells()) for spec in benchmark.tables}
    rows = []
    for cell, record in records.items():
        identity = asdict(cell)
        identity["memory_budget_bytes"] = identity.pop("memory_bytes")
        tables = [name for name, cells in of_table.items() if cell in cells]
        found = {"error": record["error"]} if "error" in record else _columns(figures_of(record))
        rows.append({"tables": tables, **identity, "model": _model(cell), **found})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _model(cell: BenchmarkCell) -> str | None:
    if cell.strategy in BOUNDS:
        return None
    recipe = recipe_of(cell.strategy, json.loads(cell.recipe) if cell.recipe else {})
    return strategy_info(cell.strategy).network or (recipe.model if recipe else None)


def _columns(figures: CellFigures) -> dict[str, Any]:
    by_last = {_of_last(name, one.lumisections): getattr(one, name) for one in figures.by_last for name in _BY_LAST}
    return asdict(replace(figures, by_last=[])) | by_last | {"versions": list(figures.versions.items())}


def read_cells(path: Path) -> dict[BenchmarkCell, dict[str, Any]]:
    """Records of the finished cells in a file: "cell", "figures", and "seconds", "code" and "commit" of these.

    They have no history lines. Raises StateError if the file is no results.parquet.
    """
    try:
        rows = pq.read_table(path).to_pylist()
        found = {}
        for row in rows:
            if row["error"] is None:
                identity = {field.name: row.get(field.name) for field in fields(BenchmarkCell)} | {
                    "memory_bytes": row["memory_budget_bytes"]
                }
                figures = {field.name: row.get(field.name) for field in fields(CellFigures)} | {
                    "versions": dict(row["versions"]),
                    "by_last": [
                        FiguresByLast(n, **{name: row[_of_last(name, n)] for name in _BY_LAST})
                        for n in LENGTHS
                        if row.get(_of_last("accuracy", n)) is not None
                    ],
                }
                of_both = {name: row[name] for name in ("seconds", "code", "commit")}
                found[BenchmarkCell(**identity)] = {"cell": identity, "figures": figures, **of_both}
        return found
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path} is no results.parquet of a benchmark ({error})") from error
