"""`dqmstream benchmark`: strategies over simulated streams, with both bounds and intervals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream import cli_options as options
from dqmstream import console
from dqmstream.config import recipe_flags
from dqmstream.errors import InputError, StateError

app = typer.Typer()


@app.command()
def benchmark(
    out: Annotated[
        Path, typer.Option("--out", help="folder for cells, table and figure; what is there is gone on with")
    ] = Path("benchmark-out"),
    quick: Annotated[
        bool, typer.Option("--quick", help="the baselines and both bounds on the four streams, 20 runs each")
    ] = False,
    streams: Annotated[list[str] | None, typer.Option("--stream", help="named stream; may be given more than once")] = None,
    strategies: Annotated[
        list[str] | None, typer.Option("--strategy", help="strategy or bound (ideal, ideal_profiled); more than once")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="0-9 for tuning, 100 and up for what is reported; more than once")
    ] = None,
    orders: Annotated[int, typer.Option(help="orders of the runs, the first as drawn")] = 1,
    runs: Annotated[int, typer.Option(help="runs of each stream")] = 20,
    lumisections: Annotated[int, typer.Option(help="lumisections in each run")] = 400,
    split: Annotated[
        str, typer.Option(help="blocks, or for comparison random or folds: see the warning that it prints")
    ] = "blocks",
    recipe: options.Recipe = None,
    set_: options.Set = None,
    memory_bytes: options.Memory = None,
    evaluation_samples: options.Samples = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes of one thread each (default: the processors)")] = None,
    as_json: options.Json = False,
) -> None:
    """Learn simulated streams offline and print accuracy, AUC and forgetting with 95 % intervals, beside both bounds."""
    from dqmstream.experiments.benchmark import Spec, run_benchmark
    from dqmstream.experiments.table import COLUMNS, NOTE, printed, summarise, title, write

    spec = Spec(orders=orders, runs=runs, lumisections=lumisections, split=split)
    if quick and (streams or strategies):
        raise InputError("--quick chooses streams and strategies itself: leave out --stream and --strategy, or --quick")
    if not quick and not strategies:
        raise InputError("name what to compare by --strategy (more than once), or take --quick")
    given: dict[str, Any] = {
        "streams": tuple(streams or ()),
        "strategies": tuple(strategies or ()),
        "seeds": tuple(seeds or ()),
        "recipe": recipe_flags(recipe, set_),
        "memory_bytes": memory_bytes,
        "evaluation_samples": evaluation_samples,
    }
    spec = replace(spec, **{name: value for name, value in given.items() if value}).checked()
    with console.bars() as progress:
        cells = run_benchmark(
            spec, out, workers=workers or os.cpu_count() or 1, progress=console.bar_callback(progress, "benchmark")
        )
    result = summarise(spec, cells)
    write(result, out)
    tables = [
        console.table(title(one, result), list(COLUMNS), [printed(row) for row in one["rows"]]) for one in result["tables"]
    ]
    said = [NOTE, *([result["warning"]] if result["warning"] else []), f"table and figure: {out}"]
    failed = [f"failed: {one['stream']} {one['strategy']}, seed {one['seed']}: {one['error']}" for one in result["failed"]]
    options.show(result, as_json, *tables, *said, *failed)
    if result["failed"]:
        raise typer.Exit(StateError.exit_code)
