"""Offline benchmarks: what is missing of a benchmark's cells is computed, and each is saved as it comes.

A benchmark that was stopped goes on with those that are missing. A cell that fails is recorded, and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.experiments.benchmark.cells import Cell, run_cell
from dqmstream.experiments.benchmark.spec import Benchmark
from dqmstream.experiments.benchmark.store import Record, Stored, failure
from dqmstream.experiments.provenance import code_digest


@dataclass(frozen=True)
class Progress:
    """How far a benchmark is. left_s: seconds it may still take, None where nothing like it is finished yet.

    newest: what came of the cell that was finished last, None at the beginning.
    """

    finished: int
    total: int
    failed: int
    workers: int
    left_s: float | None
    newest: Record | None


def run_benchmark(
    benchmark: Benchmark,
    out: Path,
    *,
    workers: int = 2,
    address: str | None = None,
    reuse: Sequence[Path] = (),
    dashboard: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[Cell, Record]:
    """Compute what is missing of a benchmark's cells; returns what came of all.

    Finished cells lie in `out/cells`; those that are there, of the same code, are taken as they are, and so are those of any
    code in the folders of `reuse`. A cell that failed has "error" in place of its lines (`stored`), and is tried again by the
    next call. workers: processes of one thread each on this machine; address: of a Dask scheduler, whose workers are taken in
    their place. Raises InputError if the specification makes no sense or the folder cannot be written.
    """
    benchmark = benchmark.checked()
    stored, cells = Stored(out), benchmark.cells()
    records = stored.found(cells, reuse)
    missing = [cell for cell in cells if cell not in records]

    def tell(newest: Record | None, crew: int) -> None:
        failed = sum("error" in record for record in records.values())
        left = [cell for cell in missing if cell not in records]
        progress(Progress(len(records), len(cells), failed, crew, time_left(left, records, max(crew, 1)), newest))

    tell(None, workers)
    if missing:
        from dqmstream.experiments.benchmark import dask_runner

        crew = min(workers, len(missing))
        client = dask_runner.remote_client(address) if address else dask_runner.local_client(crew, out / "dask", dashboard)
        with client as connected:
            for cell, record, there in dask_runner.sweep(connected, missing, run_cell):
                records[cell] = _of_this_code(cell, record)
                stored.save(cell, records[cell])
                tell(records[cell], there)
    return {cell: records[cell] for cell in cells}


def _of_this_code(cell: Cell, record: Record) -> Record:
    """The record; where a worker elsewhere runs other code than is here, a failure that says so."""
    if "error" in record or record["code"] == code_digest():
        return record
    error = (
        f"StateError: a worker runs commit {record['commit'] or '?'} of dqmstream, not the code that is here: install the same"
    )
    return failure(cell, error)


def time_left(missing: Iterable[Cell], records: Mapping[Cell, Record], workers: int) -> float | None:
    """Seconds that the missing cells may take, from finished ones of the same strategy and recipe, else of the strategy, else
    of any, each by its number of lumisections. None where none is finished.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for cell, record in records.items():
        if "error" not in record:
            for key in _likenesses(cell):
                rates.setdefault(key, []).append(record["seconds"] / (cell.runs * cell.lumisections))
    left = 0.0
    for cell in missing:
        known = next((rates[key] for key in _likenesses(cell) if key in rates), None)
        if known is None:
            return None
        left += float(np.mean(known)) * cell.runs * cell.lumisections
    return left / workers


def _likenesses(cell: Cell) -> list[tuple[str, ...]]:
    return [(cell.strategy, cell.recipe), (cell.strategy,), ()]
