"""Freed memory goes back to the operating system, so that a learner's process does not grow over a year."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def trim_heap() -> bool:
    """Have the C library return unused pages to the system. True where it returned any; only glibc can.

    Arrays of a training are not freed in the order in which they were made, and glibc keeps the gaps between them.
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None where the C library has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
