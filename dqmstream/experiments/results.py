"""What a benchmark leaves behind: every number as Parquet, a row a cell, and tables and figures made of them.

results.parquet     a row a cell: what it is, its figures run by run, its cost, and where they come from
results.json        all figures of the tables
table.md            the tables over all streams; streams.md one for each stream
accuracy-NAME.png, memory-NAME.png, cost-NAME.png    of each table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dqmstream.experiments.bounds import BOUNDS
from dqmstream.experiments.cells import Cell
from dqmstream.experiments.figures_benchmark import draw_accuracies, draw_costs, draw_memories
from dqmstream.experiments.plain import plain
from dqmstream.experiments.spec import Benchmark
from dqmstream.experiments.stored import Record
from dqmstream.experiments.table import learn_s, looked_at, lost
from dqmstream.experiments.table_text import markdown, stream_markdown
from dqmstream.learners.history import figures
from dqmstream.learners.registry import GRADIENT, recipe_of
from dqmstream.storage.locks import write_atomically

_REAL, _WHOLE, _TEXT = pa.float64(), pa.int64(), pa.string()

SCHEMA = pa.schema(
    [
        ("tables", pa.list_(_TEXT)),  # names of those that the cell is in
        ("stream", _TEXT), ("seed", _WHOLE), ("order", _WHOLE), ("strategy", _TEXT), ("runs", _WHOLE), ("lumisections", _WHOLE),
        ("memory_budget_bytes", _WHOLE), ("evaluation_samples", _WHOLE), ("split", _TEXT), ("fold", _WHOLE),
        ("recipe", _TEXT),  # changes to the strategy's own, as JSON
        ("model", _TEXT),  # null where there is no network
        ("run", pa.list_(_WHOLE)),  # the lists go by it; forgetting lacks the last
        ("accuracy_by_run", pa.list_(_REAL)), ("auc_by_run", pa.list_(_REAL)), ("forgetting_by_run", pa.list_(_REAL)),
        ("accuracy", _REAL), ("auc", _REAL), ("forgetting", _REAL), ("any_time_accuracy", _REAL), ("new_run_auc", _REAL),
        ("ece_calibrated", _REAL),
        ("worth", _REAL),  # independent lumisections behind the accuracy
        ("lumisections_trained", _WHOLE), ("flops", _REAL), ("memory_bytes", _WHOLE), ("state_bytes", _WHOLE),
        ("seconds", _REAL), ("learn_seconds", _REAL),
        ("versions", pa.map_(_TEXT, _TEXT)), ("commit", _TEXT), ("code", _TEXT), ("error", _TEXT),
    ]
)  # fmt: skip
"""Columns of results.parquet. Figures of a cell that failed are null."""


def write(benchmark: Benchmark, records: Mapping[Cell, Record], result: Mapping[str, Any], out: Path) -> None:
    """Write all files. benchmark: checked; result: of `table.summarise`."""
    sink = pa.BufferOutputStream()
    pq.write_table(cell_table(benchmark, records), sink)
    write_atomically(out / "results.parquet", sink.getvalue().to_pybytes())
    write_atomically(out / "results.json", json.dumps(plain(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    write_atomically(out / "streams.md", stream_markdown(result).encode())
    for table in result["tables"]:
        draw(table, lambda name: out / name)


def draw(table: Mapping[str, Any], place: Callable[[str], Path]) -> list[Path]:
    """Draw the figures of a table to where `place` puts a name; returns their paths, none where nothing is finished."""
    drawn = [one for one in table["streams"] if one["rows"]]
    if not drawn:
        return []
    kinds = {"accuracy": draw_accuracies, "cost": draw_costs}
    if len(table["spec"]["memory_bytes"]) > 1:
        kinds["memory"] = draw_memories
    paths = {kind: place(f"{kind}-{table['name']}.png") for kind in kinds}
    for kind, path in paths.items():
        kinds[kind](path, drawn)
    return list(paths.values())


def cell_table(benchmark: Benchmark, records: Mapping[Cell, Record]) -> pa.Table:
    """A row for each cell of the benchmark, as `SCHEMA` has it."""
    of_table = {spec.name: set(spec.cells()) for spec in benchmark.tables}
    rows = []
    for cell, record in records.items():
        identity = asdict(cell)
        identity["memory_budget_bytes"] = identity.pop("memory_bytes")
        tables = [name for name, cells in of_table.items() if cell in cells]
        found = {"error": record["error"]} if "error" in record else _figures(record)
        rows.append({"tables": tables, **identity, "model": _model(cell), **found})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _model(cell: Cell) -> str | None:
    if cell.strategy in BOUNDS or cell.strategy not in GRADIENT:
        return None
    recipe = recipe_of(cell.strategy, json.loads(cell.recipe) if cell.recipe else {})
    return GRADIENT[cell.strategy].model or (recipe.model if recipe else None)


def _figures(record: Record) -> dict[str, Any]:
    lines, found = record["lines"], figures(record["lines"])
    last = lines[-1]
    return {
        "run": [line["run"] for line in lines],
        "accuracy_by_run": last["accuracy"],
        "auc_by_run": last["auc"],
        "forgetting_by_run": lost(lines).tolist(),
        "accuracy": found["average_accuracy"],
        "auc": found["average_auc"],
        "forgetting": found["forgetting"],
        "any_time_accuracy": found["any_time_accuracy"],
        "new_run_auc": found["new_run_auc"],
        "ece_calibrated": (found["calibration"] or {}).get("ece_calibrated"),
        "worth": record["worth"],
        "lumisections_trained": looked_at(lines),
        "flops": found["flops"],
        "memory_bytes": last.get("memory_bytes"),
        "state_bytes": last.get("state_bytes"),
        "seconds": record["seconds"],
        "learn_seconds": learn_s(lines),
        "versions": list(record["versions"].items()),
        "commit": record["commit"],
        "code": record["code"],
    }
