"""Old snapshots of an archive are dropped while data come: by time alone, in a thread of its own.

Each commit leaves about 13 small files that only its snapshot needs: 50 000 a day at a detector's rate. Filing waits while
they are dropped, since both hold the archive's lock; whoever polls does not.
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
"""After a failure."""

log = structlog.get_logger("dqmstream.storage")


class Expiry:
    """Drops snapshots of the archive at path that are older than keep_s, at once and then again and again, until `close`.

    Snapshots that have a tag stay. A failure is logged, and tried again. every_s: from the end of one to the next.
    """

    def __init__(self, path: Path, keep_s: float, *, every_s: float | None = None, retry_s: float | None = None) -> None:
        self._began_s = _clock_lead_s()
        self._path = path
        self._keep_s = keep_s
        self._every_s = EVERY_S if every_s is None else every_s
        self._retry_s = RETRY_S if retry_s is None else retry_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="expiry", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End it; what is under way is given timeout_s, and does no harm where the process ends before."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _go_on(self) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            wait_s = self._every_s if self._expire() else self._retry_s

    def _expire(self) -> bool:
        began = time.monotonic()
        try:
            # A clock that was set ahead makes all snapshots old at once, also those that are read.
            ahead_s = max(_clock_lead_s() - self._began_s, 0.0)
            dropped = Archive.open(self._path).expire(self._keep_s + ahead_s)
        except DqmstreamError as error:
            log.error("old snapshots could not be dropped, which is tried again", reason=str(error), retry_s=self._retry_s)
        except BaseException:  # also a panic of Icechunk: data taking must not end for it
            log.exception("old snapshots could not be dropped, which is tried again", retry_s=self._retry_s)
        else:
            log.info("old snapshots dropped", snapshots=dropped, seconds=round(time.monotonic() - began, 3))
            return True
        return False


def _clock_lead_s() -> float:
    """Seconds of the clock beyond those of the machine's uptime: they change when the clock is set."""
    return time.time() - time.monotonic()
