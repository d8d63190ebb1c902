"""`dqmstream benchmark`: strategies and models over simulated streams, with both bounds and intervals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dqmstream.cli import options, output, studies, terminal
from dqmstream.errors import InputError, StateError
from dqmstream.settings import MAX_COUNT, MAX_MEMORY_BYTES, read_table, recipe_flags

if TYPE_CHECKING:
    from dqmstream.experiments.benchmark.benchmark import Progress

app = typer.Typer()


@app.command(rich_help_panel="Without an archive")
def benchmark(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SPEC]",
            help="TOML file of tables (docs/benchmark.md), in place of the flags; after --data, more files of it",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="folder for cells, tables and figures; what is there is gone on with")
    ] = Path("benchmark-out"),
    tables: Annotated[list[str] | None, typer.Option("--table", help="of SPEC, this table only; more than once")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="the baselines and both bounds on the four streams, 20 runs each")
    ] = False,
    streams: Annotated[list[str] | None, typer.Option("--stream", help="named stream; may be given more than once")] = None,
    strategies: Annotated[
        list[str] | None, typer.Option("--strategy", help="strategy or bound (ideal, ideal_profiled); more than once")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", max=MAX_COUNT, help="0-9 for tuning, 100 and up for what is reported; more than once"),
    ] = None,
    orders: Annotated[int | None, typer.Option(max=10_000, help="orders of the runs, the first as drawn (default: 1)")] = None,
    runs: Annotated[int | None, typer.Option(max=options.MAX_RUNS, help="runs of each stream (default: 20)")] = None,
    lumisections: Annotated[
        int | None, typer.Option(max=options.MAX_LENGTH, help="lumisections in each run (default: 400)")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="blocks (default), or for comparison random or folds: see the warning that it prints")
    ] = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    memory_bytes: Annotated[
        list[int] | None,
        typer.Option(
            "--memory-bytes", max=MAX_MEMORY_BYTES, help="kept of past runs, in all (default: 1000000); more than once"
        ),
    ] = None,
    evaluation_samples: options.Samples = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", help="folder of a benchmark whose finished cells are taken, of whatever code; more than once"),
    ] = None,
    data: studies.Data = None,
    epochs: studies.Epochs = 0,
    limit: studies.Limit = 0,
    size: studies.Size = "study",
    folds: studies.Folds = 0,
    augment: studies.Augment = None,
    weights: studies.Weights = None,
    device: options.Device = None,
    list_: studies.Listed = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=options.MAX_PROCESSES, help="processes of one thread each (default: the processors)"),
    ] = None,
    dask: Annotated[
        str | None, typer.Option("--dask", help="host:port of a Dask scheduler, whose workers compute", show_default=False)
    ] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="serve Dask's page on the loopback interface")] = False,
    as_json: options.Json = False,
) -> None:
    """Learn simulated streams offline and print accuracy, AUC and forgetting with 95 % intervals, beside both bounds.

    Stopped by Ctrl-C or SIGTERM it keeps what is finished, and goes on with the rest when it is called again. With --data it
    trains the recipe of an earlier study on your own files, and sets its figures beside the published ones.
    """
    if list_:
        studies.list_studies(as_json)
        return
    if data:
        studies.refuse_streams(quick, streams, strategies, tables, dask)
        studies.run(
            recipe, [*data, *(files or ())], out, set_=set_, seeds=seeds, augment=augment, as_json=as_json, epochs=epochs,
            limit=limit, size=size, folds=folds, split=split or "blocks", weights=weights, device=device or "auto",
        )  # fmt: skip
        return
    studies.refuse_without_data(recipe, (epochs, limit, folds, augment, weights, device, size != "study"))
    if files and len(files) > 1:
        raise InputError(f"{files[1]}: a benchmark is of one file of tables; further files are taken with --data alone")
    spec = files[0] if files else None
    from dqmstream.experiments.benchmark.benchmark import run_benchmark
    from dqmstream.experiments.benchmark.results import write
    from dqmstream.experiments.benchmark.spec import Benchmark, Spec, benchmark_of
    from dqmstream.experiments.benchmark.table import summarise
    from dqmstream.experiments.benchmark.table_text import NOTE, origin, overview, printed, stream_columns, title

    given: dict[str, Any] = {
        "streams": tuple(streams or ()),
        "strategies": tuple(strategies or ()),
        "seeds": tuple(seeds or ()),
        "orders": orders,
        "runs": runs,
        "lumisections": lumisections,
        "split": split,
        "recipe": recipe_flags(recipe, set_),
        "memory_bytes": tuple(memory_bytes or ()),
        "evaluation_samples": evaluation_samples,
    }
    given = {name: value for name, value in given.items() if value not in (None, ())}
    if spec and (given or quick):
        raise InputError(f"{spec} says what is computed: leave out --{'quick' if quick else next(iter(given))}, or the file")
    if tables and not spec:
        raise InputError("--table chooses among the tables of a file: name the file too")
    if quick and (streams or strategies):
        raise InputError("--quick chooses streams and strategies itself: leave out --stream and --strategy, or --quick")
    if not spec and not quick and not strategies:
        raise InputError("name a file of tables, or what to compare by --strategy (more than once), or take --quick")
    chosen = benchmark_of(read_table(spec), spec.name) if spec else Benchmark((replace(Spec(), **given),)).checked()
    if tables:
        chosen = chosen.only(tables)
    with _ended_by_sigterm(), output.bars() as bars:
        records = run_benchmark(
            chosen,
            out,
            workers=workers or os.cpu_count() or 1,
            address=dask,
            reuse=reuse or (),
            dashboard=dashboard,
            progress=_told(bars),
        )
    result = summarise(chosen, records)
    write(chosen, records, result, out)
    shown: list[Any] = []
    for table in result["tables"]:
        if spec:
            columns, rows = overview(table)
            shown.append(output.table(title(table), columns, rows))
        else:
            for one in table["streams"]:
                named = title(table, one["stream"])
                shown.append(output.table(named, stream_columns(table), [printed(row) for row in one["rows"]]))
        shown += [origin(table), *([table["warning"]] if table["warning"] else [])]
    failed = [f"failed: {one['stream']} {one['strategy']}, seed {one['seed']}: {one['error']}" for one in result["failed"]]
    options.show({"out": str(out), **result}, as_json, *shown, NOTE, f"tables, figures and results.parquet: {out}", *failed)
    if result["failed"]:
        raise typer.Exit(StateError.exit_code)


def _told(bars: Any) -> Callable[[Progress], None]:
    """A bar on a terminal; elsewhere a line on stderr for each cell that is finished, which a log keeps."""
    update = output.bar_callback(bars, "benchmark")

    def tell(progress: Progress) -> None:
        left = "" if progress.left_s is None else f", {_time(progress.left_s)} left"
        failed = f", {progress.failed} failed" if progress.failed else ""
        crew = f"{progress.workers} workers" if progress.workers else "waiting for workers"
        said = f"benchmark, {crew}{failed}{left}"
        update(progress.finished, progress.total, said)
        if progress.newest and not output.err.is_terminal:
            cell = progress.newest["cell"]
            came = progress.newest.get("error") or f"{progress.newest['seconds']:.0f} s"
            what = f"{cell['stream']} {cell['seed']} {cell['strategy']}"
            terminal.tell(output.err, f"{progress.finished}/{progress.total}{failed}{left}: {what}, {came}")

    return tell


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, by way of its clean-up, with the shell's exit code for it."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
