"""The `dqmstream` command: its subcommands, its exit codes. Each subcommand is a module of this folder."""

from __future__ import annotations

import atexit
import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dqmstream import __version__
from dqmstream.cli import archive, benchmark, deadletters, output
from dqmstream.cli.compare import compare
from dqmstream.cli.consume import consume
from dqmstream.cli.demo import demo
from dqmstream.cli.faults import faults
from dqmstream.cli.flags import flags
from dqmstream.cli.import_ import import_
from dqmstream.cli.learn import learn, replay
from dqmstream.cli.publish import publish
from dqmstream.cli.reference import reference
from dqmstream.cli.report import report
from dqmstream.cli.simulate import simulate
from dqmstream.cli.status import status
from dqmstream.cli.terminal import open_streams, tell
from dqmstream.errors import EXIT_CODES, DqmstreamError, OutOfMemoryError, OutputClosedError, OutputError
from dqmstream.libraries import keep_in_our_folder

app = typer.Typer(
    name="dqmstream",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    help="File each lumisection once and only once, learn to tell the runs apart, measure what is forgotten. "
    "Paths, the broker and the learner's options can also be set as DQMSTREAM_<NAME> in the environment, or the --config file.",
)
_DATA, _LEARNING, _OFFLINE = "Data", "Learning", "Without an archive"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log progress to stderr")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings (default: $DQMSTREAM_CONFIG)")
    ] = None,
) -> None:
    output.configure_logs(verbose)
    if config is not None:
        os.environ["DQMSTREAM_CONFIG"] = str(config.absolute())
    if version:
        print(f"dqmstream {__version__}")
        raise typer.Exit


app.command(rich_help_panel=_DATA)(simulate)
app.command(name="import", rich_help_panel=_DATA)(import_)
app.command(rich_help_panel=_DATA)(publish)
app.command(rich_help_panel=_DATA)(consume)
app.command(rich_help_panel=_DATA)(status)
app.add_typer(archive.app, rich_help_panel=_DATA)
app.add_typer(deadletters.app, rich_help_panel=_DATA)
app.command(rich_help_panel=_LEARNING)(learn)
app.command(rich_help_panel=_LEARNING)(replay)
app.command(rich_help_panel=_LEARNING)(flags)
app.command(rich_help_panel=_LEARNING)(reference)
app.command(rich_help_panel=_LEARNING)(report)
app.command(rich_help_panel=_OFFLINE)(demo)
app.command(rich_help_panel=_OFFLINE)(compare)
app.command(rich_help_panel=_OFFLINE)(faults)
app.add_typer(benchmark.app)


def main() -> None:
    """Run the command. An error that the user can mend is printed as one line on stderr, and sets the exit code."""
    # OpenMP threads that spin at barriers slow down 10 to 20 times when another process needs the cores, as beside a DAQ.
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
    """End the process with this exit code: run what `atexit` registered, then leave without the interpreter's shutdown.

    A Rust thread of Icechunk that releases a Python object during the shutdown aborts the process (3 of 180 commands that had
    just opened an archive, on busy cores, ended by a signal in place of their exit code).
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OutputError as error:
        _tell(error)
        code = code or error.exit_code
    sys.stderr.flush()
    os._exit(code)
