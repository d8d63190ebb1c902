"""Receiving in pieces of 256 KiB.

Mended: the client receives 4 KiB at a time, five calls for one occupancy map, and releases Python's lock for each. Seen with
kafka-python 3.0.12. A proposal to receive into a prepared buffer: dpkp/kafka-python issue 290 (closed).
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaTCPTransport

from dqmstream.streaming.kafka.workarounds import private_names

RECEIVE_BYTES = 256 * 2**10
LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def receive_large_pieces(consumer: KafkaConsumer) -> None:
    """Let the consumer's connections, from the next one on, receive up to RECEIVE_BYTES at a time."""
    manager = private_names.manager(consumer)
    build = manager._build_transport

    async def build_transport(*arguments: Any, **settings: Any) -> KafkaTCPTransport:
        transport = await build(*arguments, **settings)
        transport._sock_recv = lambda: receive(transport._sock)
        return transport

    manager._build_transport = build_transport


def receive(sock: Any) -> tuple[bytes, KafkaConnectionError | None]:
    """What has come on a non-blocking socket that is readable, and the error that ended the connection, if one did.

    Bytes that TLS has already deciphered do not make the socket readable again, so they are read to their end.
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
