"""Receiving in large pieces.

The client asks the kernel for 4 KiB at a time, five times for one occupancy map, and lets go of the interpreter's lock for
each. That costs as much as everything else that it does with a message.
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaTCPTransport

RECEIVE_BYTES = 256 * 2**10
LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def receive_largely(consumer: KafkaConsumer) -> None:
    """Have the consumer's connections, from the next one on, read up to RECEIVE_BYTES at a time."""
    manager = consumer._manager
    build = manager._build_transport

    async def build_transport(*arguments: Any, **settings: Any) -> KafkaTCPTransport:
        transport = await build(*arguments, **settings)
        transport._sock_recv = lambda: _receive(transport)
        return transport

    manager._build_transport = build_transport


def _receive(transport: KafkaTCPTransport) -> tuple[bytes, KafkaConnectionError | None]:
    """All that has come, up to what a connection may have in flight; the error that ended it, if one did."""
    received: list[bytes] = []
    error = None
    try:
        while data := transport._sock.recv(RECEIVE_BYTES):
            received.append(data)
        error = KafkaConnectionError("socket disconnected")
    except LATER:
        pass
    except OSError as failure:  # SSL's errors are of these
        error = KafkaConnectionError(failure)
    return b"".join(received), error
