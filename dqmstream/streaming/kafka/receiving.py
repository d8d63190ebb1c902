"""Receiving in large pieces, into memory that is there already.

The client asks the kernel for 4 KiB at a time, five times for one occupancy map, and lets go of the interpreter's lock for
each. It copies a fetch of 4 MiB five times on its way, each time into memory that the allocator had given back to the kernel
and that is made anew page by page. Either costs more than all else that the client does.
"""

from __future__ import annotations

import ctypes
import ssl
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaTCPTransport

RECEIVE_BYTES = 256 * 2**10
LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

KEPT_BYTES = 256 * 2**20
"""Of free memory that the process keeps in each of its heaps."""

LARGEST_KEPT_BYTES = 32 * 2**20
"""Of one allocation that is made of it: glibc takes no more."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have the process use again what it has freed, where the C library is one that can be told (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def receive_largely(consumer: KafkaConsumer) -> None:
    """Have the consumer's connections, from the next one on, read up to RECEIVE_BYTES at a time."""
    manager = consumer._manager
    build = manager._build_transport

    async def build_transport(*arguments: Any, **settings: Any) -> KafkaTCPTransport:
        transport = await build(*arguments, **settings)
        transport._sock_recv = lambda: _receive(transport._sock)
        return transport

    manager._build_transport = build_transport


def _receive(sock: Any) -> tuple[bytes, KafkaConnectionError | None]:
    """What has come, and the error that ended the connection, if one did.

    sock: said to be readable. What TLS has deciphered already, the kernel does not tell of again: it is read to its end.
    """
    received: list[bytes] = []
    try:
        while True:
            received.append(sock.recv(RECEIVE_BYTES))
            if not received[-1]:
                return b"".join(received), KafkaConnectionError("socket disconnected")
            if not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                return b"".join(received), None
    except LATER:
        return b"".join(received), None
    except OSError as error:  # TLS's errors are of these
        return b"".join(received), KafkaConnectionError(error)
