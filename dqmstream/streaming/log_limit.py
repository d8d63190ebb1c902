"""A limit for log lines that repeat: the first five of a kind are logged, then their number once a minute."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LINES = 5
"""Lines of a kind that are logged in each interval."""

INTERVAL_S = 60.0

MOST_KINDS = 32
"""Kinds that are distinguished in an interval; all others count as one."""

VARIABLE = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|\d+")
"""Parts of a reason in which events of one kind may differ: quoted text and numbers."""

LogMethod = Callable[..., Any]


@dataclass
class _Kind:
    log: LogMethod
    event: str
    until: float
    logged: int = 0
    suppressed: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class LogLimit:
    """Logs events, and counts those that repeat. Any thread may call it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()

    def log(self, method: LogMethod, event: str, reason: str, **facts: Any) -> None:
        """Log the event, unless LINES of its kind were logged in this interval: then it is counted.

        method: of the logger, such as `log.warning`. Events are of one kind if their reasons differ in numbers and quoted
        text only.
        """
        self.log_suppressed()
        with self._lock:
            name = (event, VARIABLE.sub("", reason[:200])[:40])
            if name not in self._kinds and len(self._kinds) >= MOST_KINDS:
                name = (event, "")
            kind = self._kinds.get(name)
            if kind is None:
                kind = self._kinds[name] = _Kind(method, event, self._clock() + INTERVAL_S)
            if kind.logged >= LINES:
                kind.suppressed, kind.last = kind.suppressed + 1, {"last_reason": reason, **facts}
                return
            kind.logged += 1
        method(event, reason=reason, **facts)

    def log_suppressed(self, *, at_end: bool = False) -> None:
        """Log the number of suppressed events of each kind whose interval is over; of every kind at the end."""
        now = self._clock()
        with self._lock:
            over = [name for name, kind in self._kinds.items() if at_end or now >= kind.until]
            ended = [self._kinds.pop(name) for name in over]
        for kind in ended:
            if kind.suppressed:
                kind.log(f"{kind.event}: more of its kind", count=kind.suppressed, **kind.last)
