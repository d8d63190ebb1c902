"""Memory that was freed goes back to the system, so that a process that learns for a year stays as large as it was."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None where the C library has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> bool:
    """Have the C library return the pages that hold nothing; whether it gave back any (glibc alone does).

    Arrays of a run's training and judging are freed in another order than they came in, and glibc keeps the holes between
    them: 1.5 MB a run in `python -m benchmarks.learner`, which takes 10 ms to return.
    """
    trim = _trim()
    return trim is not None and bool(trim(0))
