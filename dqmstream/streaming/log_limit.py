"""Log lines that repeat: the first few of a kind are told, then how many more there were, once a minute."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TOLD = 5
"""Lines of a kind that are told in full in each interval."""

EVERY_S = 60.0

MOST_KINDS = 32
"""Kinds that are told apart in an interval; all others are one."""

VARIABLE = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|\d+")
"""Parts of a reason that tell no kinds apart: quoted text and numbers."""

Tell = Callable[..., Any]


@dataclass
class _Kind:
    tell: Tell
    event: str
    until: float
    told: int = 0
    more: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class Repeats:
    """Tells of what happens, and of what happens again and again in numbers. Any thread may call it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()

    def tell(self, tell: Tell, event: str, reason: str, **facts: Any) -> None:
        """Log the event, unless TOLD of its kind were logged since the interval began: then it is counted.

        tell: method of the logger. reason: events with the same reason, but for numbers and quoted text, are of a kind.
        """
        self.tell_due()
        with self._lock:
            name = (event, VARIABLE.sub("", reason[:200])[:40])
            if name not in self._kinds and len(self._kinds) >= MOST_KINDS:
                name = (event, "")
            kind = self._kinds.get(name)
            if kind is None:
                kind = self._kinds[name] = _Kind(tell, event, self._clock() + EVERY_S)
            if kind.told >= TOLD:
                kind.more, kind.last = kind.more + 1, {"last_reason": reason, **facts}
                return
            kind.told += 1
        tell(event, reason=reason, **facts)

    def tell_due(self, *, all_of_it: bool = False) -> None:
        """Log how many were counted, of each kind whose interval is over, or of all."""
        now = self._clock()
        with self._lock:
            over = [name for name, kind in self._kinds.items() if all_of_it or now >= kind.until]
            ended = [self._kinds.pop(name) for name in over]
        for kind in ended:
            if kind.more:
                kind.tell(f"{kind.event}: more of its kind", count=kind.more, **kind.last)
