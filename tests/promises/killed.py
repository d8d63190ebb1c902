"""A writer that files a feed and kills itself at a named step of a commit.

It runs in a process of its own, forked from a server that has imported everything and opened nothing. Patched functions add
the kill and are otherwise unchanged.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import icechunk

from dqmstream.lumisection import RunStart, RunStop
from dqmstream.storage import writer
from dqmstream.storage.archive import Archive
from dqmstream.storage.commits import Change
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import encode
from tests.commandline import forks
from tests.maps import SOURCE, lumisection

FEED = "hcal@cluster.topic"
STEPS = ("before the rows", "after the rows", "inside the commit", "after the commit", "before the Kafka commit", "anywhere")
BAD_EVERY = 41
"""One message in BAD_EVERY cannot be stored."""


def messages(runs: int, length: int) -> list[Message]:
    """The feed's messages: runs with start and stop, every 41st message damaged, every 29th sent twice."""
    found: list[Message] = []
    for run in range(1, runs + 1):
        records = [RunStart(run), *(lumisection(run, n) for n in range(1, length + 1)), RunStop(run)]
        for record in records:
            key, value, headers = encode(record)
            for _ in range(2 if len(found) % 29 == 28 else 1):
                offset = len(found)
                bad = offset % BAD_EVERY == BAD_EVERY - 1
                found.append(Message(0, offset, key, value[:-1] if bad else value, headers))
    return found


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def die_after(delay_s: float) -> None:
    """Kill the process from another thread, wherever it is by then, also inside compiled code."""

    def wait() -> None:
        end = time.perf_counter() + delay_s
        while time.perf_counter() < end:
            pass
        die()

    threading.Thread(target=wait, daemon=True).start()


def arm(step: str, commit: int, delay_s: float) -> None:
    """Let the process die at this step of its commit number `commit` (from 1 on)."""
    commits = 0

    def at_commit(function: Callable[..., Any], ending: Callable[[], object], *, behind: bool = False) -> Any:
        """behind: the kill comes after the function has returned, rather than before it is called."""

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits == commit and not behind:
                ending()
            returned = function(*arguments, **keywords)
            if commits == commit and behind:
                ending()
            return returned

        return wrapped

    if step == "anywhere":
        die_after(delay_s)
    elif step == "before the rows":
        writer.check_tiling = at_commit(writer.check_tiling, die)
    elif step == "after the rows":
        Change.commit = at_commit(Change.commit, die)  # type: ignore[method-assign]
    elif step == "inside the commit":
        icechunk.Session.commit = at_commit(icechunk.Session.commit, lambda: die_after(delay_s))  # type: ignore[method-assign]
    elif step == "after the commit":
        icechunk.Session.commit = at_commit(icechunk.Session.commit, die, behind=True)  # type: ignore[method-assign]
    elif step == "before the Kafka commit":
        InProcessFeed.commit = at_commit(InProcessFeed.commit, die)  # type: ignore[method-assign]
    else:
        raise ValueError(f"there is no step {step!r}")


def file_all(spec: dict[str, Any]) -> None:
    """File the feed to its end, unless a kill comes first."""
    sent = messages(spec["runs"], spec["length"])
    archive = Archive.open_or_create(Path(spec["archive"]), source=SOURCE)
    feed = InProcessFeed(FEED, lambda: iter(sent), max_records=spec["poll"])
    letters = FolderDeadLetters(Path(spec["letters"]))
    loop = Ingest(feed, ArchiveWriter(archive), letters, topic="hcal", max_rows=spec["max_rows"], flush_s=0.001)
    if spec["step"]:
        arm(spec["step"], spec["commit"], spec["delay_s"])
    while not feed.exhausted:
        loop.step(0.01)
    loop.drain()


def exit_code_of_writer(spec: dict[str, Any]) -> int | None:
    """Run a writer; -9 if SIGKILL ended it, 0 if it reached the end of the feed."""
    process = forks().Process(target=file_all, args=(spec,))
    process.start()
    process.join()
    return process.exitcode


def draw(rng: random.Random, step: str) -> dict[str, Any]:
    """Random parameters of one kill."""
    return {
        "step": step,
        "commit": rng.randint(1, 2),
        # A commit takes some milliseconds; a whole writer with its start, some hundred.
        "delay_s": rng.uniform(0.0, 0.4) if step == "anywhere" else rng.uniform(0.0, 0.006),
        "poll": rng.choice((3, 7, 16)),
        "max_rows": rng.choice((5, 9, 64)),
    }
