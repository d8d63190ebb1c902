"""Memory that was freed is used again, rather than returned to the kernel and made anew page by page.

The client copies each fetch of 4 MiB several times. With glibc's own settings every copy takes fresh pages, which costs
more than all else that the client does.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 256 * 2**20
"""Free memory that the process keeps in each of its heaps."""

LARGEST_KEPT_BYTES = 32 * 2**20
"""Largest allocation that is made from it, the most that glibc accepts."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Set the C library's allocator so, where it is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
