"""Dropping old snapshots of an archive at regular times, in a thread, while data are taken.

Each commit leaves about 13 small files that only its snapshot needs: 50 000 a day at a detector's rate. Filing waits meanwhile,
since both need the archive's lock; polling does not wait.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import structlog

from dqmstream.errors import DqmstreamError
from dqmstream.storage.archive import Archive

EVERY_S = 3600.0
RETRY_S = 300.0
"""Time to the next try after a failure."""

log = structlog.get_logger("dqmstream.storage")


class Expiry:
    """Drops untagged snapshots of the archive at path that are older than keep_s: at once, then every every_s, until `close`.

    A failure is logged and tried again after retry_s.
    """

    def __init__(self, path: Path, keep_s: float, *, every_s: float | None = None, retry_s: float | None = None) -> None:
        self._began_s = _clock_lead_s()
        self._path = path
        self._keep_s = keep_s
        self._every_s = EVERY_S if every_s is None else every_s
        self._retry_s = RETRY_S if retry_s is None else retry_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expiry", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop. Waits up to timeout_s for an expiry that is under way; the process may also end during it."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            wait_s = self._every_s if self._expire() else self._retry_s

    def _expire(self) -> bool:
        began = time.monotonic()
        try:
            # If the clock was set ahead, all snapshots look old at once, also those that are still read.
            ahead_s = max(_clock_lead_s() - self._began_s, 0.0)
            dropped = Archive.open(self._path).expire(self._keep_s + ahead_s)
        except DqmstreamError as error:
            log.error("old snapshots could not be dropped; this will be tried again", reason=str(error), retry_s=self._retry_s)
        except BaseException:  # also a panic of Icechunk: it must not end data taking
            log.exception("old snapshots could not be dropped; this will be tried again", retry_s=self._retry_s)
        else:
            log.info("old snapshots dropped", snapshots=dropped, seconds=round(time.monotonic() - began, 3))
            return True
        return False


def _clock_lead_s() -> float:
    """Time of the clock minus the machine's uptime, in seconds: it changes only if the clock is set."""
    return time.time() - time.monotonic()
