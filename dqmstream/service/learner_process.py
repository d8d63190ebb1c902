"""The learner of `consume`: a child process that is watched and restarted a bounded number of times."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import structlog

from dqmstream.errors import InputError, StateError, StateInUseError
from dqmstream.learners.stream.heartbeat import BEAT_S, Sign, read_sign
from dqmstream.learners.stream.state_folder import is_running, read_status
from dqmstream.settings import Settings, as_json
from dqmstream.storage.archive import Archive

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

STOP_S = 30.0
KILLED_S = 5.0
"""Longest wait for a process that was killed: one that waits for a disk ends only when the disk answers."""
START_S = 120.0
"""Additional time until the first sign of life of a child, which imports PyTorch first."""
IN_USE_RETRY_S = 3.0
RETRY_MOST_S = 30.0
PASSING_RETRY_MOST_S = 300.0

PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Error numbers of conditions that pass (disk full, no memory): a learner that fails by one is never given up."""

log = structlog.get_logger("dqmstream.service.consume")


class LearnerProcess:
    """The learner as a child process, which is restarted if it ends early or hangs.

    If another process holds the state, that process learns, and this one tries again every few seconds. A child that shows no
    sign of life for `learner_hang_s` is killed. The learner is given up after `learner_restarts` starts in a row without a new
    experience, or at once if its state cannot be used, since a restart would change nothing. After an error that passes
    (`PASSING`) it is restarted again and again, with pauses of up to five minutes.
    """

    def __init__(self, archive: Archive, state: Path, settings: Settings, idle_s: float) -> None:
        self._given = as_json(settings_of_child(archive, state, settings, idle_s))
        self._folder = state / settings.name
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._silence = Silence(self._folder)
        self._hung = False
        self._failures = 0
        self._learnt = -1
        self._start_at = 0.0
        self._failed: int | None = None
        self.gave_up: int | None = None
        self.error: str | None = None
        """The last failure, in words."""

    @property
    def status(self) -> dict[str, Any]:
        """Status that the learner wrote last; empty if it cannot be read, which must not stop ingest."""
        try:
            return read_status(self._folder) or {}
        except (StateError, OSError) as error:
            log.debug("the learner's status cannot be read", error=str(error))
            return {}

    def watch(self) -> None:
        """Start the child if it should run, kill it if it hangs. Called from the ingest loop; never waits."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                self._kill_if_silent(self._process)
                return
            pid, self._process = self._process.pid, None
            self._note_end(pid, code)
        if self.gave_up is None and time.monotonic() >= self._start_at:
            self._start()

    def _start(self) -> None:
        try:
            if is_running(self._folder):  # an orphan of a service that was killed, or the learner of another worker
                self._wait_for_other()
                return
            given = _pipe_holding(self._given)
            try:
                self._process = subprocess.Popen(
                    _learn_command(), stdin=given, stdout=subprocess.DEVNULL, start_new_session=True
                )
            finally:
                os.close(given)
        except OSError as error:  # no process, memory or descriptor is left
            self._failures += 1
            self._failed, self._learnt = StateError.exit_code, self.status.get("experiences_learnt", 0)
            self.error = f"the learner cannot be started: {error.strerror or error}"
            pause_s = self._pause(PASSING_RETRY_MOST_S)
            log.error("the learner cannot be started", error=str(error), failures=self._failures, again_in_s=pause_s)
            return
        self._hung = False
        self._silence.forget()
        log.info("learner started", pid=self._process.pid)

    def _wait_for_other(self) -> None:
        """Another process learns. If it hangs, its own service kills it; a user must end a `learn` that they started."""
        silent_s = self._silence.seconds()
        hung, self._hung = self._hung, silent_s > self._settings.learner_hang_s
        if self._hung:
            self.error = (
                f"another process holds {self._folder} and has shown no sign of life for {silent_s:.0f} s: end that process"
            )
            self._failed = StateInUseError.exit_code
            if not hung:
                log.error("another process holds the learner's state and hangs: end that process", silent_s=round(silent_s))
        elif hung:
            self._failed = self.error = None
        self._start_at = time.monotonic() + IN_USE_RETRY_S

    def _kill_if_silent(self, process: subprocess.Popen[bytes]) -> None:
        silent_s = self._silence.seconds()
        if silent_s <= self._settings.learner_hang_s or self._hung:
            return
        self._hung = True
        log.error("learner hangs: it is killed and restarted", pid=process.pid, silent_s=round(silent_s))
        process.kill()  # a stopped process takes no other signal; no wait here, since the disk may be what hangs

    def _note_end(self, pid: int, code: int) -> None:
        """Decide when the learner is restarted, if at all."""
        hung, self._hung = self._hung, False
        if code == StateInUseError.exit_code:  # another worker's learner was quicker
            self._start_at = time.monotonic() + IN_USE_RETRY_S
            return
        self._failed = code
        sign = self._sign_of(pid)
        passing = sign is not None and sign.error_number in PASSING
        self.error = f"no sign of life for {self._settings.learner_hang_s:g} s" if hung else _reason(code, sign)
        learnt = self.status.get("experiences_learnt", 0)
        self._failures = 1 if learnt > self._learnt else self._failures + 1
        self._learnt = learnt
        log.error("learner ended", exit_code=code, failures=self._failures, learnt=learnt, error=self.error)
        final = code in (StateError.exit_code, InputError.exit_code, 2) or self._failures > self._settings.learner_restarts
        if final and not passing:
            self.gave_up = code
            log.error("learner given up: lumisections are still filed; learn later with `dqmstream learn`", exit_code=code)
        else:
            self._pause(PASSING_RETRY_MOST_S if passing else RETRY_MOST_S)

    def _pause(self, most_s: float) -> float:
        """Set the pause before the next start, longer after each failure; returns it in seconds."""
        pause_s = min(most_s, 2.0 ** min(self._failures - 1, 20))
        self._start_at = time.monotonic() + pause_s
        return pause_s

    def caught_up(self, snapshot: str) -> bool:
        """Whether everything in the archive at that snapshot is learnt, or the learner will learn nothing more."""
        if self.gave_up is not None or self._failures > self._settings.learner_restarts:
            return True
        if self._process is None and self._hung:
            return True
        status = self.status
        return bool(
            status
            and status["snapshot"] == snapshot
            and status["experiences_behind"] == 0
            and status.get("windows_behind", 0) == 0
            and status["open_runs"] == 0
        )

    def stop(self) -> int | None:
        """End the child, by SIGKILL if it has not ended within 30 s; the next start continues from its checkpoint.

        Returns the exit code of a learner that was given up, that failed now, or that has neither learnt a run nor caught up
        since its last failure; None if all is well.
        """
        process, failed = self._process, None if self._is_well() else self._failed
        if process is not None:
            self._end(process)
            self._process = None
            if process.returncode not in (0, None, -signal.SIGTERM, -signal.SIGKILL):
                failed = process.returncode
                self.error = _reason(failed, self._sign_of(process.pid))
        return failed if self.gave_up is None else self.gave_up

    def _is_well(self) -> bool:
        """Whether the learner has learnt a run, or caught up, since its last failure."""
        if self._hung or self._failed is None:
            return not self._hung
        status = self.status
        if self._process is not None and status.get("pid") == self._process.pid and status.get("experiences_behind") == 0:
            return True
        return bool(status.get("experiences_learnt", 0) > self._learnt)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if not self._hung:
            process.terminate()
            try:
                process.wait(STOP_S)
                return
            except subprocess.TimeoutExpired:
                log.warning("the learner did not end in time: it is killed, and will learn its run again", pid=process.pid)
        process.kill()
        try:
            process.wait(KILLED_S)
        except subprocess.TimeoutExpired:
            log.error("the learner cannot be ended while the disk hangs", pid=process.pid)

    def _sign_of(self, pid: int) -> Sign | None:
        sign = read_sign(self._folder)
        return sign if sign is not None and sign.pid == pid else None


class Silence:
    """Time for which a learner has shown no sign of life.

    Only time during which this process ran is counted: if this process was stopped, its learner must not appear to hang.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, int] | None = None
        self._looked_at = time.monotonic()
        self._silent_s = 0.0

    def forget(self) -> None:
        """Reset, for a child that is started now: it has `START_S` more for its first sign."""
        self._seen = self._read()
        self._looked_at, self._silent_s = time.monotonic(), -START_S

    def seconds(self) -> float:
        now = time.monotonic()
        passed = now - self._looked_at
        if passed >= BEAT_S:
            seen = self._read()
            is_new = seen is not None and seen != self._seen
            self._silent_s = 0.0 if is_new else self._silent_s + min(passed, 4 * BEAT_S)
            self._seen = seen or self._seen
            self._looked_at = now
        return self._silent_s

    def _read(self) -> tuple[int, int] | None:
        sign = read_sign(self._folder)
        return None if sign is None else (sign.pid, sign.beats)


def _reason(code: int, sign: Sign | None) -> str:
    """Why the learner ended, in words."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" if -code in {*signal.Signals} else f"ended by signal {-code}"
    return sign.ended if sign is not None and sign.ended else f"ended with exit code {code}"


def settings_of_child(archive: Archive, state: Path, settings: Settings, idle_s: float) -> Settings:
    """The settings of the service, for its learner: with the archive and the state as they are open here."""
    reference = settings.reference and settings.reference.absolute()
    given = {"archive": archive.path.absolute(), "state": state.absolute(), "reference": reference, "idle_s": idle_s}
    return settings.model_copy(update=given)


def _learn_command() -> list[str]:
    """The child reads its settings, as one JSON object, from its standard input."""
    return [sys.executable, "-m", "dqmstream", "learn", "--follow", "--parent", str(os.getpid())]


def _pipe_holding(text: str) -> int:
    """The end to read of a pipe that holds this text. A pipe takes 64 kB without a reader; settings are far less."""
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as end:
        end.write(text)
    return read


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux): an orphan would hold the state for ever.

    A kill at any moment loses at most the experience that is being learnt. parent: process id of the parent, to check that it
    has not ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise StateError(f"the service {parent} that started this learner is gone")
