"""The `dqmstream` command: parses, calls one function, prints. torch is imported only by what trains."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dqmstream import __version__
from dqmstream.cli import archive as archive_commands
from dqmstream.cli import benchmark as benchmark_commands
from dqmstream.cli import compare, deadletters, faults, learn, output, studies
from dqmstream.cli.flags import flags
from dqmstream.cli.options import (
    MAX_LENGTH,
    MAX_RUNS,
    Archive,
    Bootstrap,
    Depths,
    Device,
    Dtype,
    Idle,
    Interpolated,
    Json,
    LabelDelay,
    LetterTopic,
    MaxEvents,
    Memory,
    Name,
    Recipe,
    Reference,
    Samples,
    Seed,
    Set,
    Source,
    State,
    Strategy,
    Stream,
    Threads,
    Topic,
    Watch,
    Window,
    finite,
    show,
)
from dqmstream.cli.reference import reference as make_reference
from dqmstream.cli.terminal import open_streams, tell
from dqmstream.errors import EXIT_CODES, DqmstreamError, InputError, OutOfMemoryError, OutputClosedError, OutputError
from dqmstream.libraries import keep_in_our_folder
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import MAX_SEED, MAX_WAIT_S, Settings, load_settings, recipe_flags

app = typer.Typer(
    name="dqmstream",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    help="File each lumisection once and only once, learn to tell the runs apart, measure what is forgotten. "
    "What says where things are and how a learner learns can be set as DQMSTREAM_<NAME> too, or as a key of the --config file.",
)
_DATA, _LEARNING, _OFFLINE = "Data", "Learning", "Without an archive"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log what is done, on stderr")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings (default: $DQMSTREAM_CONFIG)")
    ] = None,
) -> None:
    output.configure_logs(verbose)
    if config is not None:
        os.environ["DQMSTREAM_CONFIG"] = str(config.absolute())  # the learner that `consume` starts reads it too
    if version:
        print(f"dqmstream {__version__}")
        raise typer.Exit


@app.command(rich_help_panel=_DATA)
def simulate(
    out: Annotated[Path, typer.Argument(help="folder for the files, new or empty")],
    stream: Stream = "moderate",
    seed: Annotated[
        int, typer.Option(max=MAX_SEED, help="seeds make streams: 0-9 for tuning, 100 and up for what is reported")
    ] = 0,
    runs: Annotated[int | None, typer.Option(max=MAX_RUNS, help="number of runs (default: the stream's own)")] = None,
    lumisections: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_LENGTH, help="lumisections in each run (default: the stream's own; 400, of pair 501 and 1046)"
        ),
    ] = None,
    interpolate_to: Annotated[
        int | None,
        typer.Option(max=MAX_LENGTH, help="rows a run, interpolated between lumisections, as in the published files (10000)"),
    ] = None,
    layout: studies.Layout = None,
    images: studies.Images = 2000,
    contrast: studies.Contrast = 1.0,
    as_json: Json = False,
) -> None:
    """Simulate HCAL runs: .npy files in the original layout, sidecars, and truth.json; or images for the earlier studies.

    A lumisection takes 37 kB: year, at its 1000 runs, writes 15 GB, and pair with --interpolate-to 10000 740 MB.
    """
    if layout is not None:
        studies.simulate(out, layout, images, seed, contrast, as_json)
        return
    from dqmstream.experiments.simulator import write

    with output.bars() as progress:
        paths = write(
            out, stream, seed, runs, lumisections,
            interpolate_to=interpolate_to, progress=output.bar_callback(progress, f"simulate {stream}"),
        )  # fmt: skip
    result = {"out": str(out), "stream": stream, "seed": seed, "files": [path.name for path in paths]}
    show(result, as_json, f"{len(paths)} files in {out}")


@app.command(name="import", rich_help_panel=_DATA)
def import_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="maps as .npy (n, 64, 72) or wider, DIALS Parquet, Run<number>/output__depth.npy; images as .hdf5 or Parquet; "
            "or folders of them",
            show_default=False,
        ),
    ] = None,
    archive: Archive = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="golden JSON, kept in the archive as a new version of its labels")
    ] = None,
    golden_only: Annotated[bool, typer.Option("--golden-only", help="file no lumisection that --golden does not name")] = False,
    luminosity: Annotated[
        list[Path] | None,
        typer.Option(
            "--lumi",
            help="pileup, luminosity, events or HLT rates by lumisection (OMS, brilcalc): .csv, .json or .parquet; repeatable",
        ),
    ] = None,
    hlt_path: Annotated[
        str | None,
        typer.Option("--hlt-path", help="trigger path whose rate gives events, of HLT rates by --lumi (default: HLT_ZeroBias)"),
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="of wider maps, leave out what lies beyond |ieta| 32, which else is refused")
    ] = False,
    run: Annotated[
        int | None, typer.Option(max=MAX_NUMBER, help="run number of the only file, where its name has none")
    ] = None,
    interpolated: Interpolated = False,
    dtype: Dtype = None,
    depths: Depths = None,
    source: Source = None,
    max_events: MaxEvents = None,
    as_json: Json = False,
) -> None:
    """Import runs, or images, from files. All are checked before anything is written; importing twice changes nothing.

    It says what was taken, what was dropped and why. Images go to an archive of their own.
    """
    from dqmstream.storage.imports.import_data import ImportOptions, import_data

    settings = load_settings(archive=archive, dtype=dtype, depths=depths, source=source, max_events=max_events)
    with output.bars() as progress:
        kept = {stage: output.bar_callback(progress, stage) for stage in ("read", "check", "import")}
        options = ImportOptions(
            settings.dtype, settings.depths, settings.source,
            run=run, interpolated=interpolated, crop=crop, golden=golden, golden_only=golden_only,
            luminosity=luminosity or (), hlt_path=hlt_path, max_events=settings.max_events,
        )  # fmt: skip
        done = import_data(settings.need("archive"), files or [], options, lambda stage, n, total: kept[stage](n, total))
    show(done, as_json, *output.describe_imported(done))


@app.command(rich_help_panel=_DATA)
def publish(
    archive: Archive = None,
    bootstrap: Bootstrap = None,
    topic: Topic = None,
    runs: Annotated[
        list[int] | None, typer.Option("--run", max=MAX_NUMBER, help="publish this run only; may be given more than once")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, callback=finite, help="lumisections a second (default: as fast as it goes)"),
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="one lumisection every 23.31 s")] = False,
    create: Annotated[bool, typer.Option("--create", help="make the topic")] = False,
    partitions: Annotated[int | None, typer.Option(min=1, max=100_000, help="of a topic that is made (default: 1)")] = None,
    as_json: Json = False,
) -> None:
    """Send archived runs to Kafka as the data acquisition would: run start, lumisections, run stop."""
    from dqmstream.service.commands import publish_runs

    if rate and realtime:
        raise InputError("--rate and --realtime exclude each other")
    if partitions and not create:
        raise InputError("--partitions is for a topic that is made: give --create too")
    settings = load_settings(archive=archive, bootstrap=bootstrap, topic=topic)
    with output.bars() as progress:
        kept = output.bar_callback(progress, "publish")
        result = publish_runs(settings, runs, rate, realtime, (partitions or 1) if create else None, kept)
    show(result, as_json, f"{result['lumisections']} lumisections of {len(result['runs'])} runs sent to {result['topic']}")


@app.command(rich_help_panel=_DATA)
def consume(
    bootstrap: Bootstrap = None,
    topic: Topic = None,
    archive: Archive = None,
    state: State = None,
    no_learn: Annotated[bool, typer.Option("--no-learn", help="only file, do not learn")] = False,
    until_idle: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MAX_WAIT_S,
            callback=finite,
            help="end when nothing came for so many seconds and nothing is left to learn",
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="consumer group (default: one of this copy of the archive)")] = None,
    instance: Annotated[str | None, typer.Option(help="static member id of this worker in the group")] = None,
    dead_letter_topic: LetterTopic = None,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="record what the broker deleted before it was read, and go on")
    ] = False,
    dtype: Dtype = None,
    depths: Depths = None,
    source: Source = None,
    accept_others: Annotated[
        bool, typer.Option("--accept-others", help="make dead letters of other sources even while none is the archive's")
    ] = False,
    max_events: MaxEvents = None,
    name: Name = None,
    strategy: Strategy = None,
    recipe: Recipe = None,
    set_: Set = None,
    reference: Reference = None,
    seed: Seed = None,
    memory_bytes: Memory = None,
    idle_s: Idle = None,
    evaluation_samples: Samples = None,
    watch_samples: Watch = None,
    window: Window = None,
    label_delay: LabelDelay = None,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """The service: file what comes, once and only once, and learn runs as they become complete. SIGTERM drains and ends."""
    from dqmstream.service.commands import consume_topic

    settings = load_settings(
        bootstrap=bootstrap, topic=topic, archive=archive, state=state, group=group, instance=instance,
        dead_letter_topic=dead_letter_topic, accept_gap=accept_gap or None, dtype=dtype, depths=depths, source=source,
        accept_others=accept_others or None, max_events=max_events, name=name, strategy=strategy,
        recipe=recipe_flags(recipe, set_), reference=reference, seed=seed,
        memory_bytes=memory_bytes, idle_s=idle_s, evaluation_samples=evaluation_samples, watch_samples=watch_samples,
        window=window, label_delay=label_delay, threads=threads, device=device,
    )  # fmt: skip
    with output.bars() as progress:
        result = consume_topic(
            settings,
            learn=not no_learn,
            until_idle_s=until_idle,
            progress=output.consume_bar(progress),
        )
    show(result, as_json, output.describe_consumed(result))
    if code := result["exit_code"]:
        raise typer.Exit(code)


@app.command(rich_help_panel=_LEARNING)
def report(
    out: Annotated[Path, typer.Option("--out", help="folder for the report, new or an older report's", show_default=False)],
    archive: Archive = None,
    state: State = None,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", help="folder of a finished benchmark, drawn in place of an archive"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw what was learnt and forgotten, and which channels changed: HTML and PNG."""
    if benchmark is not None:
        from dqmstream.experiments.benchmark.page import write_benchmark_report

        page = write_benchmark_report(benchmark, out)
        show({"report": str(page)}, as_json, f"report: {page}")
        return
    from dqmstream.experiments.report.report import write_report
    from dqmstream.storage.archive import Archive as Reader

    settings = load_settings(archive=archive, state=state)
    with output.bars() as progress:
        kept = output.bar_callback(progress, "draw")
        page = write_report(
            Reader.open(settings.need("archive")), settings.state_path, out, progress=lambda _, n, total: kept(n, total)
        )
    show({"report": str(page)}, as_json, f"report: {page}")


@app.command(rich_help_panel=_DATA)
def status(archive: Archive = None, state: State = None, as_json: Json = False) -> None:
    """What is in the archive, and what the learners last did."""
    from dqmstream.learners.stream.status import learner_status
    from dqmstream.storage.archive import Archive as Reader
    from dqmstream.storage.status import archive_status

    settings = load_settings(archive=archive, state=state)
    reader = Reader.open(settings.need("archive"))
    result = {**archive_status(reader), "learners": learner_status(reader, settings.state_path, settings.learner_hang_s)}
    show(result, as_json, *output.describe_status(result))


@app.command(rich_help_panel=_OFFLINE)
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder for everything, made anew")] = Path("demo-out"),
    stream: Stream = "moderate",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of stream and learner")] = 0,
    runs: Annotated[int, typer.Option(min=2, max=MAX_RUNS, help="number of runs")] = 6,
    lumisections: Annotated[int, typer.Option(min=180, max=MAX_LENGTH, help="lumisections in each run")] = 400,
    kafka: Annotated[bool, typer.Option("--kafka", help="through the broker at --bootstrap")] = False,
    bootstrap: Bootstrap = None,
    as_json: Json = False,
) -> None:
    """Simulate, import, stream, learn, replay and report, in one go."""
    from dqmstream.cli.demo import run_demo

    settings: Settings = load_settings(bootstrap=bootstrap)
    began = time.monotonic()
    result = run_demo(out, stream, seed, runs, lumisections, settings.need("bootstrap") if kafka else None)
    result["seconds"] = round(time.monotonic() - began, 1)
    show(result, as_json, *output.describe_demo(result))


app.add_typer(archive_commands.app, rich_help_panel=_DATA)
app.add_typer(deadletters.app, rich_help_panel=_DATA)
app.command(rich_help_panel=_LEARNING)(learn.learn)
app.command(rich_help_panel=_LEARNING)(learn.replay)
app.command(rich_help_panel=_LEARNING)(flags)
app.command(rich_help_panel=_LEARNING)(make_reference)
app.command(rich_help_panel=_OFFLINE)(compare.compare)
app.command(rich_help_panel=_OFFLINE)(faults.faults)
app.add_typer(benchmark_commands.app)


def main() -> None:
    """Run the command; an error that the user can mend is one line on stderr and its exit code."""
    # OpenMP threads that spin at barriers cost 10 to 20 times when another process wants the cores, as beside a DAQ.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_streams()
    keep_in_our_folder()
    try:
        app()
    except DqmstreamError as error:
        _tell(error)
        _leave(error.exit_code)
    except MemoryError as error:
        _leave_without_memory(error)
    except OSError as error:
        from dqmstream.storage.failures import of_system

        if error.errno == errno.ENOMEM:
            _leave_without_memory(error)
        if (known := of_system(error)) is None:
            raise
        _tell(known)
        _leave(known.exit_code)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)


def _leave_without_memory(error: Exception) -> NoReturn:
    what = " ".join(str(error).split())
    known = OutOfMemoryError(f"no memory is left{f' ({what})' if what else ''}: give this process more, and start again")
    _tell(known)
    _leave(known.exit_code)


def _tell(error: DqmstreamError) -> None:
    if not isinstance(error, OutputClosedError):
        tell(output.err, f"dqmstream: {error}", style="red")


def _leave(code: int) -> NoReturn:
    """End with this exit code, by all that is registered for the end but not through the interpreter's own.

    A Rust thread of Icechunk that lets go of a Python object while the interpreter is taken down aborts the process: of 180
    commands that had just opened an archive, on busy cores, 3 ended by a signal in place of their exit code.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OutputError as error:
        _tell(error)
        code = code or error.exit_code
    sys.stderr.flush()
    os._exit(code)
