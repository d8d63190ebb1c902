"""What a command prints: whole numbers on any terminal, names of any bytes, and a fitting end where nobody can be told."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from dqmstream.cli import output
from dqmstream.cli.status import describe_status
from dqmstream.cli.terminal import _Descriptor, tell
from dqmstream.experiments.compare.pair import read_pair
from dqmstream.storage.archive import Archive
from tests.commandline import Command, dqmstream, told
from tests.maps import counts, write_run

NOT_UTF8 = os.fsdecode(b"Run355400_Dataset_\xff.npy")


def status() -> dict[str, object]:
    columns = ("run", "lumisections", "first", "last", "missing", "revisions", "duplicates", "complete", "scale")
    runs = [dict(zip(columns, (355400 + k, 2048, 1, 2048, 0, 131072, 65536, "stop", "counts"), strict=True)) for k in range(2)]
    kinds = ("feed", "partition", "first_offset", "next_offset", "rows", "duplicate", "dead", "hole", "gap")
    feed = dict(zip(kinds, ("hcal@Qm9yZ-4.6wT7x", 3, 100000, 355400, 204800, 99999, 12345, 77777, 424242), strict=True))
    archive = {"archive": "/data/year/2024/hcal archive", "archive_id": "0f1e2d3c4b5a", "snapshot": "SNAP123"}
    archive |= {"committed": "2024-05-04T20:51:27.123456Z", "clock_behind_s": 7200.0}
    return {**archive, "lumisections": 4096, "dtype": "float32", "depths": 1, "runs": runs, "feeds": [feed], "learners": {}}


def printed(part: object, width: int, *, terminal: bool) -> str:
    file = io.StringIO()
    tell(Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False), part)
    return file.getvalue()


@pytest.mark.parametrize("width", [10, 20, 40, 70, 80, 90, 100])
def test_a_narrow_terminal_breaks_no_number(width: int) -> None:
    for part in describe_status(status()):
        wide, narrow = (printed(part, columns, terminal=True) for columns in (1000, width))
        whole, found = (sorted(re.findall(r"[\w./@-]*\d[\w./@-]*", text)) for text in (wide, narrow))
        assert found == whole
        longest = max(len(word) for word in re.findall(r"[^\s━─]+", wide))
        assert all(len(line) <= max(width, longest + 2) for line in narrow.splitlines())


def test_what_is_no_terminal_gets_whole_lines_and_tables() -> None:
    line, *_ = describe_status(status())
    assert len(printed(line, 20, terminal=False).splitlines()) == 1
    assert len(printed(output.table("t", ["a", "b"], [["x", 355400]]), 5, terminal=False).splitlines()) == 6


def on_a_terminal(code: str, **env: str) -> str:
    """What Python writes to a stderr that is a terminal."""
    mine, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, check=True, env={"PATH": "/usr/bin:/bin", **env}, timeout=60
        )
    finally:
        os.close(theirs)
    with os.fdopen(mine, "rb", buffering=0) as file:
        return file.read(4096).decode()


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_the_log_is_coloured_on_a_terminal_alone_that_wants_it(env: dict[str, str], coloured: bool) -> None:
    code = (
        "import structlog; from dqmstream.cli import output as c; c.configure_logs(True); structlog.get_logger().info('filed')"
    )
    said = on_a_terminal(code, PYTHONPATH=str(Path(__file__).parents[2]), **env)
    assert "filed" in said and ("\x1b[" in said) == coloured


def test_a_file_whose_name_is_no_utf8_is_filed_once_and_told_with_an_escape(tmp_path: Path) -> None:
    write_run(tmp_path, 355400, counts(7, 2), sidecars=False).rename(tmp_path / NOT_UTF8)
    (tmp_path / os.fsdecode(b"\xfe.json")).write_text('{"355400": [[1, 2]]}')
    asked = ("import", tmp_path / NOT_UTF8, "--golden", tmp_path / os.fsdecode(b"\xfe.json"), "--archive", tmp_path / "A")
    first = dqmstream(*asked, env={**os.environ, "COLUMNS": "300"})
    assert first.returncode == 0, first.stderr
    assert r"Run355400_Dataset_\udcff.npy" in first.stdout and r"\udcfe.json is version 1" in first.stdout
    again = dqmstream(*asked, "--json")
    (file,) = json.loads(again.stdout.splitlines()[-1])["files"]
    assert (file["name"], file["known"]) == (r"Run355400_Dataset_\udcff.npy", True)
    assert Archive.open(tmp_path / "A").runs()[0].lumisections == 2


def test_an_archive_that_cannot_be_named_in_utf8_is_refused_and_not_made(tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 7, counts(7, 2), sidecars=False)
    for flag, value in (("--archive", tmp_path / os.fsdecode(b"\xff")), ("--source", os.fsdecode(b"\xff"))):
        says = told(dqmstream("import", path, "--archive", tmp_path / "A", flag, value), 3)
        assert r"\udcff is not UTF-8 text" in says
    assert sorted(tmp_path.iterdir()) == [tmp_path / "data"]


def test_names_of_compared_files_can_be_drawn_and_written(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(run), run, counts(run, 30)) for run in (355400, 355401)]
    odd = paths[0].rename(paths[0].with_name(NOT_UTF8))
    pair = read_pair(str(odd), str(paths[1]), None, False)
    assert pair.names[0] == r"Run355400_Dataset_\udcff.npy"


def test_a_pipe_that_does_not_wait_loses_nothing() -> None:
    """As one is that is shared with a program which set it so."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.extend(iter(lambda: os.read(reader, 65536), b"")))
    with io.BufferedWriter(_Descriptor(writer)) as file:
        file.write(b"x" * 65536)  # all that it holds
        thread.start()
        file.write(b"y" * 1_000_000)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(came) == b"x" * 65536 + b"y" * 1_000_000


def no_space() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def no_reader() -> None:
    for number in (1, 2):
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)


def closed() -> None:
    for number in (0, 1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # as Python has it where they were closed before it began


@pytest.mark.parametrize(
    ("before", "code", "says"),
    [
        (no_space, 3, "dqmstream: standard output cannot be written: No space left on device"),
        (no_reader, 141, ""),
        (closed, 0, ""),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_output_that_cannot_be_written_costs_nothing_that_was_done(
    tmp_path: Path, before: object, code: int, says: str, as_json: bool
) -> None:
    path = write_run(tmp_path / "data", 7, counts(7, 2), sidecars=False)
    words = ["import", path, "--archive", tmp_path / "A", *(["--json"] if as_json else [])]
    command = Command(*words, before=before)  # type: ignore[arg-type]
    assert command.wait(120) == code
    _, stderr = command.communicate()
    assert "Traceback" not in stderr and [line for line in stderr.splitlines() if line.startswith("dqmstream: ")] == (
        [f"{says}; what the command did apart from that stands"] if says else []
    )
    assert Archive.open(tmp_path / "A").runs()[0].lumisections == 2


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&- 2>&-", 0), (">/dev/full", 3), ("| head -c 0", 141), ("2>&1 | head -c 0", 141), ("2>/dev/full", 0)],
)
def test_a_command_from_a_shell_ends_as_quietly(redirection: str, code: int) -> None:
    """With all that an interpreter does at its start and end. The pipe's reader is gone before anything is written."""
    run = "sleep 0.5; " * redirection.startswith(("|", "2>&1")) + f"{sys.executable} -m dqmstream --version"
    script = f"set -o pipefail; ({run}) {redirection}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
