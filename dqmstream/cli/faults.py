"""`dqmstream faults`: detectors of faults on a simulated stream whose faults are known, with intervals and a bound."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.option_groups import grouped
from dqmstream.cli.options import MAX_LENGTH, MAX_RUNS, Json, Scheduler, Workers, finite, show
from dqmstream.errors import StateError
from dqmstream.settings import MAX_COUNT

if TYPE_CHECKING:
    from dqmstream.experiments.faults.spec import FaultSpec


@dataclass(frozen=True)
class SpecOptions:
    """What is computed."""

    quick: Annotated[bool, typer.Option("--quick", help="one seed, 12 runs of 200 lumisections, no re-tests")] = False
    detectors: Annotated[list[str] | None, typer.Option("--detector", help="only this detector; repeatable (default: all)")] = (
        None
    )
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", max=MAX_COUNT, help="0-9 for tuning, 100 and up for reported figures; repeatable"),
    ] = None
    runs: Annotated[int | None, typer.Option(max=MAX_RUNS, help="runs of the stream (default: 40)")] = None
    lumisections: Annotated[int | None, typer.Option(max=MAX_LENGTH, help="lumisections of each run (default: 400)")] = None
    shift: Annotated[
        str | None, typer.Option(help="what moves between runs: large (conditions, drift, ageing; default) or small (drift)")
    ] = None
    depths: Annotated[int | None, typer.Option(max=7, help="1 for depth 1 of HE (default), 7 for all depths of HE")] = None
    alarms: Annotated[
        float | None, typer.Option(max=20, callback=finite, help="false alarms per run that a threshold allows (default: 1)")
    ] = None
    every: Annotated[
        int | None,
        typer.Option(
            max=MAX_COUNT, help="re-test the detector on earlier conditions after every N runs; 0 for never (default: 6)"
        ),
    ] = None

    def spec(self) -> FaultSpec:
        """The specification. Raises InputError for what does not exist or makes no sense."""
        from dqmstream.experiments.faults.spec import FaultSpec

        spec = FaultSpec(seeds=(100,), runs=12, lumisections=200, every=0) if self.quick else FaultSpec()
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "quick"}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return replace(spec, **{name: value for name, value in given.items() if value not in (None, ())}).checked()


@dataclass(frozen=True)
class RunOptions:
    """Where the cells are computed and kept."""

    out: Annotated[Path, typer.Option("--out", help="folder for cells, tables and figure; existing results are reused")] = Path(
        "faults-out"
    )
    workers: Workers = None
    dask: Scheduler = None
    as_json: Json = False


@grouped
def faults(options: SpecOptions, run: RunOptions) -> None:
    """Measure how well failing channels, modules and readout boxes are found within runs of the simulated stream `tracks`.

    A run is scored before it is learnt, with thresholds from past good data. Printed are false-positive rates, delays and the
    channels named, by kind of fault, for the fault score of the learner, for other detectors, and for an oracle that knows the
    true gains and what can fail.
    """
    from dqmstream.experiments.cells.runner import Progress
    from dqmstream.experiments.cells.runner import Workers as Where
    from dqmstream.experiments.cells.signals import exit_on_sigterm
    from dqmstream.experiments.faults.cell import FaultCell
    from dqmstream.experiments.faults.spec import run_faults
    from dqmstream.experiments.faults.summary import summarise
    from dqmstream.experiments.faults.text import (
        BY_KIND,
        COLUMNS,
        COST_COLUMNS,
        KIND_COLUMNS,
        NOTE,
        PRECISION_COLUMNS,
        forgetting_lines,
        printed,
        printed_by_kind,
        printed_cost,
        printed_precision,
        title,
        write,
    )

    spec = options.spec()
    count = run.workers or os.cpu_count() or 1
    with exit_on_sigterm(), output.bars() as bars:
        update = output.bar_callback(bars, "faults")

        def report(progress: Progress[FaultCell]) -> None:
            update(progress.finished, progress.total)

        records = run_faults(spec, run.out, Where(0 if count == 1 else count, run.dask), report)
    result = summarise(spec, records)
    write(result, run.out)
    rows = result["detectors"]
    tables = [output.table(title(result), COLUMNS, [printed(row) for row in rows])]
    tables.append(output.table("Precision at a capture", PRECISION_COLUMNS, [printed_precision(row) for row in rows]))
    tables += [output.table(what, KIND_COLUMNS, [printed_by_kind(row, what) for row in rows]) for what in BY_KIND]
    tables.append(output.table("Cost", COST_COLUMNS, [printed_cost(row) for row in rows]))
    lines = [*forgetting_lines(result), NOTE, f"tables and figure: {run.out}", *result["failed"]]
    show(result, run.as_json, *tables, *lines)
    if result["failed"]:
        raise typer.Exit(StateError.exit_code)
