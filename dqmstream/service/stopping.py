"""Ending the service: SIGTERM and SIGINT set a stop, and the work under way is finished in order."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A flag that tells the service to end, with a wait that it interrupts. `set` may be called by a signal handler.

    `threading.Event.set` may not be: the frame that the handler interrupts may hold its lock, and the handler then waits for
    ever.
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
        """Return when the stop is set, or after timeout_s."""
        if not self._asked:
            with suppress(queue.Empty):
                self._wake.get(timeout=timeout_s)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A stop that SIGTERM and SIGINT set, so that messages that were read are filed before the process ends.

    A second signal ends the process at once, by the kernel: if the disk hangs, no Python code may run. Messages that are not
    filed will be read again.
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
