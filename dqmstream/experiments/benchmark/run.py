"""Running a benchmark: finished cells are reused, the missing ones computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.reuse import reused_records
from dqmstream.experiments.benchmark.spec import Benchmark
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
from dqmstream.experiments.cells.store import CellStore


def run_benchmark(
    benchmark: Benchmark,
    out: Path,
    workers: Workers,
    *,
    reuse: Sequence[Path] = (),
    progress: Callable[[Progress[BenchmarkCell]], None] = lambda progress: None,
) -> dict[BenchmarkCell, Record]:
    """Compute the missing cells of a benchmark; returns the records of all.

    Finished cells of the same code in `out` are reused, and those of any code in the folders of `reuse`. A cell that failed is
    computed again by the next call. Raises InputError if the specification makes no sense or a folder is missing or cannot be
    written.
    """
    cells = benchmark.checked().cells()
    known = reused_records(cells, reuse)
    return run_cells(cells, CellStore(out), workers, known=known, time_left=time_left, progress=progress)


def time_left(missing: Iterable[BenchmarkCell], records: Mapping[BenchmarkCell, Record], workers: int) -> float | None:
    """Estimate of the seconds that the missing cells take; None if no cell is finished.

    The time per lumisection is the mean over finished cells of the same strategy and recipe, else of the strategy, else of all.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for cell, record in records.items():
        if "error" not in record:
            for key in _kinds(cell):
                rates.setdefault(key, []).append(record["seconds"] / (cell.runs * cell.lumisections))
    left = 0.0
    for cell in missing:
        known = next((rates[key] for key in _kinds(cell) if key in rates), None)
        if known is None:
            return None
        left += float(np.mean(known)) * cell.runs * cell.lumisections
    return left / workers


def _kinds(cell: BenchmarkCell) -> list[tuple[str, ...]]:
    return [(cell.strategy, cell.recipe), (cell.strategy,), ()]
