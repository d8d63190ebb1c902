"""How a process that serves is asked to end: SIGTERM and SIGINT set a stop, and the work under way is ended in order."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
