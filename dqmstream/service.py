"""What `consume` is: ingest in this process, the learner in a child.

The archive is all that they share. A learner that is slow, dead or killed never slows ingest: it is started again within
a bound, and what it has not learnt yet waits in the archive.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from dqmstream.config import Settings
from dqmstream.errors import BrokerError, DataLostError, InputError, StateError, StateInUseError
from dqmstream.learners.state import is_running, read_status
from dqmstream.storage.archive import Archive
from dqmstream.storage.log import ArchiveWriter
from dqmstream.streaming.feed import DeadLetters, Feed
from dqmstream.streaming.filer import IngestCounts
from dqmstream.streaming.ingest import Ingest

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

log = structlog.get_logger("dqmstream.service")

POLL_S = 0.2
STOP_S = 30.0
IN_USE_RETRY_S = 3.0
EXPIRE_EVERY_S = 3600.0

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LearnerProcess:
    """The learner as a child process, started again when it ends before its time.

    Where another process holds the state, that one learns, and the place is asked for again every few seconds. It is given
    up after `learner_restarts` starts in a row that brought no experience, or at once where it says that its state cannot
    be used: starting it again would change nothing.
    """

    def __init__(self, archive: Archive, state: Path, settings: Settings, idle_s: float) -> None:
        self._command = _learn_command(archive, state, settings, idle_s)
        self._folder = state / settings.name
        self._restarts = settings.learner_restarts
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._learnt = -1
        self._start_at = 0.0
        self.gave_up: int | None = None

    def watch(self) -> None:
        """Start the child if it does not run and may; called from the ingest loop, never waits."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            self._note_end(code)
        if self.gave_up is None and time.monotonic() >= self._start_at:
            if is_running(self._folder):  # an orphan of a service that was killed, or another worker's: it learns for us
                self._start_at = time.monotonic() + IN_USE_RETRY_S
                return
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
            log.info("learner started", pid=self._process.pid)

    def _note_end(self, code: int) -> None:
        """Decide when it is started again, if ever."""
        if code == StateInUseError.exit_code:  # another worker's learner was quicker
            self._start_at = time.monotonic() + IN_USE_RETRY_S
            return
        learnt = (read_status(self._folder) or {}).get("experiences_learnt", 0)
        self._failures = 1 if learnt > self._learnt else self._failures + 1
        self._learnt = learnt
        log.error("learner ended", exit_code=code, failures=self._failures, learnt=learnt)
        if code in (StateError.exit_code, InputError.exit_code, 2) or self._failures > self._restarts:
            self.gave_up = code
            log.error("learner given up: the archive goes on being filed, learn later with `dqmstream learn`", exit_code=code)
        else:
            self._start_at = time.monotonic() + min(30.0, 2.0 ** (self._failures - 1))

    def caught_up(self, snapshot: str) -> bool:
        """Whether everything in the archive at that snapshot is learnt, or the learner was given up."""
        if self.gave_up is not None:
            return True
        status = read_status(self._folder)
        return (
            status is not None
            and status["snapshot"] == snapshot
            and status["experiences_behind"] == 0
            and status.get("windows_behind", 0) == 0
            and status["open_runs"] == 0
        )

    def stop(self) -> None:
        """Ask the child to end, and end it when it does not within 30 s; the next start goes on from its checkpoint."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _learn_command(archive: Archive, state: Path, settings: Settings, idle_s: float) -> list[str]:
    flags = {
        "archive": archive.path,
        "state": state,
        "name": settings.name,
        "strategy": settings.strategy,
        "seed": settings.seed,
        "memory-bytes": settings.memory_bytes,
        "idle-s": idle_s,
        "evaluation-samples": settings.evaluation_samples,
        "watch-samples": settings.watch_samples,
        "window": settings.window,
        **({} if settings.label_delay is None else {"label-delay": settings.label_delay}),
        "threads": settings.threads,
        "device": settings.device,
        "parent": os.getpid(),
    }
    if settings.reference is not None:
        flags["reference"] = settings.reference.absolute()
    recipe = (f"--set={name}={json.dumps(value)}" for name, value in settings.recipe.items())
    return [
        sys.executable, "-m", "dqmstream", "learn", "--follow",
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))), *recipe,
    ]  # fmt: skip


@dataclass(frozen=True)
class Consumed:
    """What one call of `consume` did."""

    counts: IngestCounts
    waiting: int
    """Offsets that were read and could not be filed within `drain_s`; they will be read again."""
    seconds: float
    learner_exit_code: int | None
    """Exit code of a learner that was given up; None where all went well."""

    def as_json(self) -> dict[str, Any]:
        seconds = round(self.seconds, 3)
        return asdict(self.counts) | {
            "waiting": self.waiting, "seconds": seconds, "learner_exit_code": self.learner_exit_code,
        }  # fmt: skip


def consume(
    archive: Archive,
    feed: Feed,
    dead_letters: DeadLetters,
    settings: Settings,
    *,
    topic: str,
    learn: bool = True,
    until_idle_s: float | None = None,
    stop: Stop | None = None,
    progress: Callable[[IngestCounts, dict[str, Any]], None] = lambda counts, learner: None,
) -> Consumed:
    """File what the feed gives and let a child learn from it, until stop is set, or until nothing is left to do.

    until_idle_s: end when nothing came for so long and no experience is behind; runs that were never stopped then count as
    complete. Snapshots that nothing needs any more are dropped at run stops, at most once an hour. progress: called about
    five times a second with the counts and the learner's status. On the way out all that was read is filed, unless the disk
    takes longer than `drain_s`, and the child is ended. Raises DataLostError and BrokerError as the feed does.
    """
    stop = stop or Stop()
    began = time.monotonic()
    idle_s = settings.idle_s if until_idle_s is None else min(settings.idle_s, until_idle_s)
    learner = LearnerProcess(archive, settings.state_path, settings, idle_s) if learn else None
    ingest = Ingest(
        feed,
        ArchiveWriter(archive),
        dead_letters,
        topic=topic,
        max_rows=settings.max_rows,
        flush_s=settings.flush_s,
        crc_required=settings.crc_required,
        max_events=settings.max_events,
    )
    told, stops, expire_at = 0.0, 0, began + EXPIRE_EVERY_S

    def learner_status() -> dict[str, Any]:
        return (read_status(settings.state_path / settings.name) or {}) if learn else {}

    try:
        while not stop.is_set():
            idle = ingest.step(POLL_S) == 0 and until_idle_s is not None and ingest.idle_s >= until_idle_s
            if idle and ingest.drain(POLL_S):
                archive = archive.refresh()
                if learner is None or learner.caught_up(archive.snapshot):
                    break
                stop.wait(POLL_S)  # an in-process feed that has ended does not wait by itself
            if learner is not None:
                learner.watch()
            if ingest.counts.stops > stops and time.monotonic() >= expire_at:
                stops, expire_at = ingest.counts.stops, time.monotonic() + EXPIRE_EVERY_S
                log.info("expired", snapshots=archive.expire(settings.keep_snapshots_s))
            if time.monotonic() - told >= POLL_S:
                told = time.monotonic()
                progress(ingest.counts, learner_status())
        if not ingest.drain(settings.drain_s):
            log.error("the disk did not take all in time: what is left will be read again", messages=ingest.waiting)
        progress(ingest.counts, learner_status())
    except (DataLostError, BrokerError):
        # What was read before the feed ended may be nowhere else any more.
        ingest.drain(settings.drain_s)
        raise
    finally:
        ingest.close()
        if learner is not None:
            learner.stop()
        feed.close()
        dead_letters.close()
    return Consumed(ingest.counts, ingest.waiting, time.monotonic() - began, learner.gave_up if learner else None)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent is gone (Linux): an orphan would hold the state for ever.

    SIGKILL at any moment costs no more than the experience under way. parent: process id, to see whether it is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise StateError(f"the service {parent} that started this learner is gone")


class Stop:
    """Whether the service is to end, and a wait that this cuts short; `set` may be called by a signal's handler.

    A `threading.Event` may not: its lock may be held by the very frame that the handler interrupts, which then waits for ever.
    """

    def __init__(self) -> None:
        self._asked = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is reentrant, by its documentation

    def is_set(self) -> bool:
        return self._asked

    def set(self) -> None:
        self._asked = True
        self._wake.put(None)

    def wait(self, timeout_s: float) -> None:
        """Return when it is set, or after so long."""
        if not self._asked:
            with suppress(queue.Empty):
                self._wake.get(timeout=timeout_s)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A stop that SIGTERM and SIGINT set, so that what was read is filed before the process ends.

    A second one ends the process at once, by the kernel: the disk may hang, and no Python would run. What is not filed will
    be read again.
    """
    stop = Stop()

    def end(number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        stop.set()

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
