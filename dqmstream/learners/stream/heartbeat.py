"""Signs of life of a learner, in a file that other processes read.

The learning thread cannot write while it trains or evaluates, so a second thread writes for it once a second. It writes only
if the learning thread made progress: it called `beat`, or used processor time. A thread that waits for a disk or a lock does
neither, and a stopped process writes nothing. An endless loop is not detected, since it uses processor time; `busy_s` shows it.

The file has a fixed size and is written in place, so that it can say that the disk is full.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dqmstream.storage.failures import system_error

FILE_NAME = "heartbeat"
BEAT_S = 1.0
WORK_S = 0.05
"""Processor time of the learning thread that counts as progress. A thread that polls a lock uses less in minutes."""
SIZE = 4096
LONGEST_ERROR = 1000
DONE = "done"


@dataclass(frozen=True)
class Sign:
    """The content of the file.

    beats: grows while the learner makes progress. monotonic_s: the machine's monotonic clock at the last beat; setting the time
    does not change it. boot: the start of the machine since which that clock counts. busy_s: seconds since the last call of
    `beat`. ended: "" while the learner runs, "done", or the error that ended it. error_number: errno of that error, if any.
    """

    pid: int
    beats: int
    monotonic_s: float
    boot: str
    busy_s: float = 0.0
    ended: str = ""
    error_number: int | None = None

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last beat; None if it was on another machine or before this machine started."""
        return max(time.monotonic() - self.monotonic_s, 0.0) if self.boot == boot_id() else None


class Heartbeat:
    """Writes the signs of life of the thread that creates it, until `close`."""

    def __init__(self, folder: Path) -> None:
        """Create the file in the folder, or overwrite it. Raises OSError where the disk is full or no thread can be started."""
        self._descriptor = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(self._descriptor, 0, SIZE)
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
            self._said, self._beats = 0, 0
            self._said_at = time.monotonic()
            self._write()
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._write_regularly, name="heartbeat", daemon=True)
            _start(self._thread)
        except BaseException:
            os.close(self._descriptor)
            raise

    def beat(self) -> None:
        """Report progress. Costs nothing: the other thread writes it."""
        self._said += 1
        self._said_at = time.monotonic()

    def _write_regularly(self) -> None:
        said, worked_s = self._said, self._worked_s()
        while not self._closed.wait(BEAT_S):
            now_s = self._worked_s()
            if self._said == said and now_s - worked_s < WORK_S:
                continue
            said, worked_s = self._said, now_s
            self._beats += 1
            with suppress(OSError):  # a failing disk shows as silence
                self._write()

    def _worked_s(self) -> float:
        """Processor time of the learning thread; 0 when it has ended."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0

    def _write(self, ended: str = "", error_number: int | None = None) -> None:
        now = time.monotonic()
        sign = Sign(os.getpid(), self._beats, now, boot_id(), round(now - self._said_at, 1), ended, error_number)
        os.pwrite(self._descriptor, json.dumps(asdict(sign)).encode().ljust(SIZE), 0)

    def close(self, error: BaseException | None = None) -> None:
        """Stop, and write why the learner ended: the error, or that it is done."""
        self._closed.set()
        self._thread.join(5 * BEAT_S)  # it may be waiting for the disk
        with suppress(OSError):
            if error is None:
                self._write(DONE)
            else:
                told = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR]
                self._write(told, error_number(error))
        os.close(self._descriptor)


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "a thread") from error


def error_number(error: BaseException | None) -> int | None:
    """errno of an error, or of the error that caused it."""
    while error is not None:
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        if number := system_error(error):
            return number
        error = error.__cause__ or error.__context__
    return None


def read_sign(folder: Path) -> Sign | None:
    """The last sign of life of the folder's learner; None if there is none or it cannot be read."""
    try:
        found = json.loads((folder / FILE_NAME).read_bytes())
        return Sign(**found)
    except (OSError, ValueError, TypeError):
        return None


@cache
def boot_id() -> str:
    """Identifies the start of this machine, from which the monotonic clock counts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
