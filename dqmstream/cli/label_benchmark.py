"""`dqmstream benchmark --task labels`: methods that learn good and faulty lumisections, with intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dqmstream.cli import options, output
from dqmstream.errors import InputError, StateError

if TYPE_CHECKING:
    from dqmstream.experiments.labels.spec import LabelSpec

_SINGLE = ("runs", "lumisections", "evaluation_samples", "recipe")


def spec_of(given: Mapping[str, Any], quick: bool) -> LabelSpec:
    """The specification that the options name, by the keys of a file of tables. Raises InputError for what it does not take."""
    from dqmstream.experiments.labels.spec import LabelSpec

    values: dict[str, Any] = {"seeds": (100,), "runs": 8} if quick else {}
    several = {"strategies": "strategies", "seeds": "seeds"}
    for key, value in given.items():
        if key in _SINGLE:
            values[key] = value
        elif key in several:
            values[key] = tuple(value)
        elif key == "split":
            values["splits"] = tuple(value.split(","))
        elif key in ("streams", "memory_bytes") and len(value) == 1:
            values["stream" if key == "streams" else key] = value[0]
        else:
            raise InputError(f"--{key.replace('_', '-')}: the benchmark of labels takes one stream, one budget and no orders")
    return LabelSpec(**values).checked()


def run(spec: LabelSpec, out: Path, workers: int | None, dask: str | None, as_json: bool) -> None:
    """Compute, write and show the tables. Exits with the code of a StateError if a cell failed."""
    from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
    from dqmstream.experiments.cells.signals import exit_on_sigterm
    from dqmstream.experiments.cells.store import CellStore
    from dqmstream.experiments.labels.cell import LabelCell
    from dqmstream.experiments.labels.summary import summarise
    from dqmstream.experiments.labels.text import COLUMNS, NOTE, order_lines, printed, title, write

    count = workers or os.cpu_count() or 1
    with exit_on_sigterm(), output.bars() as bars:
        update = output.bar_callback(bars, "benchmark of labels")

        def report(progress: Progress[LabelCell]) -> None:
            update(progress.finished, progress.total)

        records = run_cells(spec.cells(), CellStore(out), Workers(0 if count == 1 else count, dask), progress=report)
    result = summarise(spec, records)
    write(result, out)
    shown: list[Any] = []
    for split in result["splits"]:
        shown += [output.table(title(result, split), COLUMNS, [printed(row) for row in split["rows"]]), *order_lines(split)]
    failed = [f"failed: {one['strategy']}, seed {one['seed']}: {one['error']}" for one in result["failed"]]
    options.show({"out": str(out), **result}, as_json, *shown, NOTE, f"tables and figure: {out}", *failed)
    if failed:
        raise typer.Exit(StateError.exit_code)
