"""`dqmstream faults`: detectors of faults over a simulated stream whose faults are known, with intervals and a bound."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.options import MAX_LENGTH, MAX_PROCESSES, MAX_RUNS, Json, finite, show
from dqmstream.errors import StateError
from dqmstream.settings import MAX_COUNT


def faults(
    out: Annotated[
        Path, typer.Option("--out", help="folder for cells, tables and figure; what is there is gone on with")
    ] = Path("faults-out"),
    quick: Annotated[bool, typer.Option("--quick", help="one seed, 12 runs of 200 lumisections, nothing had again")] = False,
    detectors: Annotated[
        list[str] | None, typer.Option("--detector", help="this detector only; may be given more than once (default: all)")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", max=MAX_COUNT, help="0-9 for tuning, 100 and up for what is reported; more than once"),
    ] = None,
    runs: Annotated[int | None, typer.Option(max=MAX_RUNS, help="runs of the stream (default: 40)")] = None,
    lumisections: Annotated[int | None, typer.Option(max=MAX_LENGTH, help="lumisections in each run (default: 400)")] = None,
    alarms: Annotated[
        float | None, typer.Option(max=20, callback=finite, help="false alarms a run that thresholds allow (default: 1)")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(max=MAX_COUNT, help="every so many runs are had again after later ones; 0 for none (default: 6)"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=MAX_PROCESSES, help="processes of one thread each (default: the processors)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find channels, modules and boxes that fail within the runs of the stream `tracks`, where conditions move more than
    they do.

    Each run is judged before it is learnt, by thresholds of past good data. False positives at a capture, delays and channels
    named, by kind of fault, for the learner's fault score, for others, and for an oracle that knows gains and what can fail.
    """
    from dqmstream.experiments.faults.benchmark import FaultSpec, run_faults
    from dqmstream.experiments.faults.table import (
        BY_KIND,
        COLUMNS,
        KIND_COLUMNS,
        NOTE,
        forgotten,
        printed,
        printed_by_kind,
        summarise,
        title,
        write,
    )  # fmt: skip

    spec = FaultSpec(seeds=(100,), runs=12, lumisections=200, every=0) if quick else FaultSpec()
    given: dict[str, Any] = {
        "detectors": tuple(detectors) if detectors else None,
        "seeds": tuple(seeds) if seeds else None,
        "runs": runs,
        "lumisections": lumisections,
        "alarms": alarms,
        "every": every,
    }
    spec = replace(spec, **{name: value for name, value in given.items() if value is not None}).checked()
    with output.bars() as progress:
        cells = run_faults(spec, out, workers=workers or os.cpu_count() or 1, progress=output.bar_callback(progress, "faults"))
    result = summarise(spec, cells)
    write(result, out)
    rows = result["detectors"]
    tables = [output.table(title(result), COLUMNS, [printed(row) for row in rows])]
    tables += [output.table(what, KIND_COLUMNS, [printed_by_kind(row, what) for row in rows]) for what in BY_KIND]
    show(result, as_json, *tables, *forgotten(result), NOTE, f"tables and figure: {out}", *result["failed"])
    if result["failed"]:
        raise typer.Exit(StateError.exit_code)
