"""`dqmstream benchmark`: strategies and models on simulated streams, with both bounds and intervals."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dqmstream.cli import label_benchmark, options, output, studies, terminal
from dqmstream.cli.option_groups import grouped
from dqmstream.errors import InputError, StateError
from dqmstream.settings import MAX_COUNT, MAX_MEMORY_BYTES, read_table, recipe_flags

if TYPE_CHECKING:
    from dqmstream.experiments.benchmark.cell import BenchmarkCell
    from dqmstream.experiments.benchmark.spec import Benchmark
    from dqmstream.experiments.cells.runner import Progress

app = typer.Typer()

Several = list[str] | None

BY_LAST = "accuracy where the last n lumisections name the run by the sum of their log-probabilities"


@dataclass(frozen=True)
class FileOptions:
    """Tables named in a file."""

    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SPEC]",
            help="TOML file of tables (docs/benchmark.md), instead of options; after --data: more data files",
            show_default=False,
        ),
    ] = None
    tables: Annotated[Several, typer.Option("--table", help="only this table of SPEC; repeatable")] = None


@dataclass(frozen=True)
class TableOptions:
    """One table named by options; a field has the name of the key in a file of tables."""

    quick: Annotated[bool, typer.Option("--quick", help="all baselines and both bounds on four streams of 20 runs")] = False
    streams: Annotated[Several, typer.Option("--stream", help="simulated stream; repeatable")] = None
    strategies: Annotated[
        Several, typer.Option("--strategy", help="strategy, or bound (ideal, ideal_profiled); repeatable")
    ] = None
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", max=MAX_COUNT, help="0-9 for tuning, 100 and up for reported figures; repeatable"),
    ] = None
    orders: Annotated[int | None, typer.Option(max=10_000, help="orders of the runs, the first as drawn (default: 1)")] = None
    runs: Annotated[int | None, typer.Option(max=options.MAX_RUNS, help="runs of each stream (default: 20)")] = None
    lumisections: Annotated[
        int | None, typer.Option(max=options.MAX_LENGTH, help="lumisections of each run (default: 400)")
    ] = None
    split: Annotated[
        str | None, typer.Option(help="blocks (default), folds, or random (biased: neighbours of test lumisections train)")
    ] = None
    recipe: options.Recipe = None
    set_: options.Set = None
    memory_bytes: Annotated[
        list[int] | None,
        typer.Option("--memory-bytes", max=MAX_MEMORY_BYTES, help="bytes kept of all past runs (default: 1000000); repeatable"),
    ] = None
    evaluation_samples: options.Samples = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by the keys of a file of tables."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("quick", "set_")}
        values["recipe"] = recipe_flags(self.recipe, self.set_)
        return {name: value for name, value in values.items() if value not in (None, [])}


@dataclass(frozen=True)
class TaskOptions:
    """What is learnt."""

    task: Annotated[
        Literal["runs", "labels"],
        typer.Option(
            help="runs, or labels: good and faulty lumisections of `tracks` (docs/labels.md); --split is then blocks, unseen, "
            "runs, or several with commas"
        ),
    ] = "runs"


@dataclass(frozen=True)
class RunOptions:
    """Where the cells are computed and kept."""

    out: Annotated[Path, typer.Option("--out", help="folder for cells, tables and figures; existing results are reused")] = (
        Path("benchmark-out")
    )
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", help="folder of another benchmark whose finished cells are reused, whatever code computed them; repeatable"),  # noqa: E501
    ] = None  # fmt: skip
    workers: options.Workers = None
    dask: options.Scheduler = None
    dashboard: Annotated[bool, typer.Option("--dashboard", help="serve Dask's dashboard on the loopback interface")] = False
    as_json: options.Json = False


@app.command(rich_help_panel="Without an archive")
@grouped
def benchmark(file: FileOptions, table: TableOptions, task: TaskOptions, study: studies.StudyOptions, run: RunOptions) -> None:
    """Learn simulated streams and print accuracy, AUC and forgetting with 95 % intervals, beside both bounds.

    Ctrl-C or SIGTERM keeps what is finished; the same command computes the rest. With --data it trains the recipe of an earlier
    study on your own files instead, and prints its figures beside the published ones.
    """
    if study.list_:
        studies.list_studies(run.as_json)
        return
    if study.data:
        studies.refuse_streams(table.quick, table.streams, table.strategies, file.tables, run.dask)
        changes = {"set_": table.set_, "seeds": table.seeds, "split": table.split}
        studies.run(study, table.recipe, file.files or [], changes, run.out, run.as_json)
        return
    studies.refuse_without_data(study, table.recipe if task.task == "runs" else None)
    if task.task == "labels":
        if file.files or file.tables or run.reuse:
            raise InputError("the benchmark of labels takes options, no file of tables and no --reuse")
        given = label_benchmark.spec_of(table.given(), table.quick)
        label_benchmark.run(given, run.out, run.workers, run.dask, run.as_json)
        return
    _run(_chosen(file, table), run, by_stream=not file.files)


def _chosen(file: FileOptions, table: TableOptions) -> Benchmark:
    """The tables of the file, or the one that the options name. Raises InputError where both or neither are given."""
    from dqmstream.experiments.benchmark.spec_reader import benchmark_of

    files, given = file.files or [], table.given()
    spec = files[0] if files else None
    if len(files) > 1:
        raise InputError(f"{files[1]}: give one file of tables; more files are possible with --data only")
    if spec and (given or table.quick):
        conflict = "quick" if table.quick else _flag(next(iter(given)))
        raise InputError(f"{spec} says what to compute: leave out --{conflict}, or the file")
    if file.tables and not spec:
        raise InputError("--table selects tables of a file: give the file too")
    if table.quick and (table.streams or table.strategies):
        raise InputError("--quick has its own streams and strategies: leave out --stream and --strategy, or --quick")
    if not spec and not table.quick and not table.strategies:
        raise InputError("nothing to compute: give a file of tables, --strategy (repeatable), or --quick")
    chosen = benchmark_of(read_table(spec), spec.name) if spec else benchmark_of(given, "")
    return chosen.only(file.tables) if file.tables else chosen


def _flag(field: str) -> str:
    """The option that gives this entry of a table."""
    return {"streams": "stream", "strategies": "strategy", "seeds": "seed"}.get(field, field.replace("_", "-"))


def _run(chosen: Benchmark, run: RunOptions, by_stream: bool) -> None:
    """Compute, write and show the tables. by_stream: show a table per stream with all columns, else one over all streams.

    Exits with the code of a StateError if a cell failed.
    """
    from dqmstream.experiments.benchmark.output_files import write
    from dqmstream.experiments.benchmark.run import run_benchmark
    from dqmstream.experiments.benchmark.summary import summarise
    from dqmstream.experiments.benchmark.text import NOTE
    from dqmstream.experiments.cells.runner import Workers
    from dqmstream.experiments.cells.signals import exit_on_sigterm

    workers = Workers(run.workers or os.cpu_count() or 1, run.dask, run.dashboard)
    with exit_on_sigterm(), output.bars() as bars:
        records = run_benchmark(chosen, run.out, workers, reuse=run.reuse or (), progress=_reported(bars))
    result = summarise(chosen, records)
    write(chosen, records, result, run.out)
    shown = [part for table in result["tables"] for part in _shown(table, by_stream)]
    failed = [f"failed: {one['stream']} {one['strategy']}, seed {one['seed']}: {one['error']}" for one in result["failed"]]
    shown += [NOTE, f"tables, figures and results.parquet: {run.out}", *failed]
    options.show({"out": str(run.out), **result}, run.as_json, *shown)
    if failed:
        raise typer.Exit(StateError.exit_code)


def _shown(table: dict[str, Any], by_stream: bool) -> list[Any]:
    """What is printed of a table."""
    from dqmstream.experiments.benchmark import text

    grids = []
    if by_stream:
        for one in table["streams"]:
            name, rows = text.title(table, one["stream"]), one["rows"]
            grids.append(output.table(name, text.stream_columns(table), [text.printed(row) for row in rows]))
            if last := [text.printed_by_last(row) for row in rows if text.by_last(row)]:
                grids.append(output.table(f"{one['stream']}, {BY_LAST}", text.by_last_columns(), last))
    else:
        grids.append(output.table(text.title(table), *text.overview(table)))
        columns, rows = text.overview_by_last(table)
        if rows:
            grids.append(output.table(f"{BY_LAST}; in parentheses divided by that of ideal", columns, rows))
    return [*grids, text.origin(table), *([table["warning"]] if table["warning"] else [])]


def _reported(bars: Any) -> Callable[[Progress[BenchmarkCell]], None]:
    """Progress as a bar on a terminal; elsewhere as a line on stderr for each finished cell, for a log file."""
    update = output.bar_callback(bars, "benchmark")

    def report(progress: Progress[BenchmarkCell]) -> None:
        left = "" if progress.left_s is None else f", {_time(progress.left_s)} left"
        failed = f", {progress.failed} failed" if progress.failed else ""
        crew = f"{progress.workers} workers" if progress.workers else "waiting for workers"
        update(progress.finished, progress.total, f"benchmark, {crew}{failed}{left}")
        if progress.newest and not output.err.is_terminal:
            cell, record = progress.newest
            outcome = record.get("error") or f"{record['seconds']:.0f} s"
            what = f"{cell.stream} {cell.seed} {cell.strategy}"
            terminal.tell(output.err, f"{progress.finished}/{progress.total}{failed}{left}: {what}, {outcome}")

    return report


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
