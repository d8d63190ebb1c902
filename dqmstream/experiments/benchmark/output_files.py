"""The files of a benchmark.

results.parquet     a row per cell: settings, figures of each run, cost, and the code that computed them
results.json        all figures of the tables
table.md            the tables over all streams
streams.md          a table per stream
accuracy-NAME.png, last-NAME.png, memory-NAME.png, cost-NAME.png    figures of each table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.figures import draw_accuracies, draw_by_last, draw_costs, draw_memories
from dqmstream.experiments.benchmark.parquet import FILE, cell_table
from dqmstream.experiments.benchmark.spec import Benchmark
from dqmstream.experiments.benchmark.text import by_last, markdown, stream_markdown
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.json_numbers import nan_as_null
from dqmstream.storage.locks import write_atomically


def write(benchmark: Benchmark, records: Mapping[BenchmarkCell, Record], result: Mapping[str, Any], out: Path) -> None:
    """Write all files. benchmark: checked; result: of `summary.summarise`."""
    sink = pa.BufferOutputStream()
    pq.write_table(cell_table(benchmark, records), sink)
    write_atomically(out / FILE, sink.getvalue().to_pybytes())
    write_atomically(out / "results.json", json.dumps(nan_as_null(result), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(result).encode())
    write_atomically(out / "streams.md", stream_markdown(result).encode())
    for table in result["tables"]:
        draw(table, lambda name: out / name)


def draw(table: Mapping[str, Any], place: Callable[[str], Path]) -> list[Path]:
    """Draw the figures of a table; returns their paths, an empty list if no cell is finished. place: file name to path."""
    drawn = [one for one in table["streams"] if one["rows"]]
    if not drawn:
        return []
    kinds = {"accuracy": draw_accuracies, "cost": draw_costs}
    if any(by_last(row) for one in drawn for row in one["rows"]):
        kinds["last"] = draw_by_last
    if len(table["spec"]["memory_bytes"]) > 1:
        kinds["memory"] = draw_memories
    paths = {kind: place(f"{kind}-{table['name']}.png") for kind in kinds}
    for kind, path in paths.items():
        kinds[kind](path, drawn)
    return list(paths.values())
