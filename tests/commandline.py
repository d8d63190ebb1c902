"""The command line in processes that are forked from one which has imported what it needs and opened nothing.

A process of its own in every other way: arguments, environment, output, exit code, and signals that end it. What it saves is
two seconds of imports a command. tests/cli/test_cli.py runs commands as a user does, from a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

from dqmstream.cli import output
from dqmstream.cli.main import main
from dqmstream.errors import EXIT_CODES
from dqmstream.storage.maintenance.expiry import Expiry
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import connection

TRACKER = "ignore:resource_tracker"
"""multiprocessing warns of the semaphores of processes that were killed, which is what happens here."""

PRELOADED = [
    "tests.commandline",
    "tests.promises.killed",
    "dqmstream.service.consume",
    "dqmstream.storage.imports.import_data",
    "dqmstream.storage.images.files",
    "dqmstream.learners.stream.flags",
    "dqmstream.learners.stream.status",
    "dask.array",
    "dqmstream.learners.stream.replay",
    "dqmstream.streaming.kafka",
]


def forks() -> ForkServerContext:
    """Where a process is forked from: one server for all tests of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    if TRACKER not in sys.warnoptions:
        sys.warnoptions.append(TRACKER)
    return context


def tell_messages() -> None:
    """Have `consume` tell in lines, not by a bar, how many messages it has read."""

    def tell(counts: IngestCounts, learner: object) -> None:
        print("messages", counts.messages, flush=True)

    output.consume_bar = lambda bar: tell


def end_waits_early() -> None:
    """Have a command wait a second for a broker that is not there, and a fifth of one for what hangs while it ends."""
    connection.CLIENT_SETTINGS["bootstrap_timeout_ms"] = 1000
    for closing in (Ingest.close, Expiry.close):
        closing.__defaults__ = (0.2,)


def _run(
    arguments: list[str], folder: Path, env: dict[str, str], stdout: Path, stderr: Path, before: Callable[[], None] | None
) -> None:
    """Be the command, in that folder; does not return."""
    os.chdir(folder)
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    random.seed()  # the server's own state would be that of every command
    importlib.reload(output)  # whose consoles looked at the server's terminal
    if before is not None:
        before()
    sys.argv = ["dqmstream", *arguments]
    main()


class Command:
    """A command that runs, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        log: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it. env: in place of this process's. log: file for stdout and stderr. before: called in it first."""
        self._folder = tempfile.TemporaryDirectory()
        self._stdout, self._stderr = (log or Path(self._folder.name, name) for name in ("stdout", "stderr"))
        for path in (self._stdout, self._stderr):
            path.touch()
        words = [str(argument) for argument in arguments]
        environment = dict(os.environ if env is None else env)
        self._process = forks().Process(target=_run, args=(words, Path.cwd(), environment, self._stdout, self._stderr, before))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; minus the signal that ended it. Raises TimeoutError."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns what it wrote to stdout and stderr."""
        self.wait(timeout)
        return self._stdout.read_text(), self._stderr.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        """As Popen does, none to a process that has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def dqmstream(
    *arguments: object, env: dict[str, str] | None = None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. env, before: of `Command`."""
    command = Command(*arguments, env=env, before=before)
    code = command.wait(300)
    return subprocess.CompletedProcess(["dqmstream", *map(str, arguments)], code, *command.communicate())


def result(*arguments: object) -> dict[str, object]:
    """The JSON object that is the last line of stdout."""
    done = dqmstream(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def told(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that failed: one line, no traceback, the documented code."""
    assert done.returncode == code, done.stderr
    assert code in EXIT_CODES
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("dqmstream: ")]
    assert len(lines) == 1
    return lines[0]
