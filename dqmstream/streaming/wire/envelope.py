"""What surrounds a message's value: key, checksum and headers."""

from __future__ import annotations

from collections.abc import Sequence

from crc32c import crc32c

from dqmstream.streaming.message import Message
from dqmstream.streaming.wire.undecodable import Undecodable, quote

CRC_HEADER = "crc32c"

READ_HEADERS = frozenset({CRC_HEADER, "run", "lumisection", "n_events", "pileup", "source"})
"""Headers that decoding reads; all others are ignored."""


def checksum(value: bytes) -> bytes:
    """CRC32C of the value as the header carries it: 8 lower-case hexadecimal digits."""
    return b"%08x" % crc32c(value)


def check_envelope(message: Message, *, crc_required: bool) -> tuple[bytes, dict[str, bytes]]:
    """The message's value and the headers that decoding reads.

    Raises Undecodable where the value is missing, differs from its checksum, or has none although crc_required.
    """
    if message.error:
        raise Undecodable(message.error)
    value = message.value
    if not value:
        raise Undecodable("the value is empty")
    headers = _read_headers(message.headers)
    if CRC_HEADER not in headers:
        if crc_required:
            raise Undecodable(f"no header {CRC_HEADER}")
    elif headers[CRC_HEADER] != (right := checksum(value)):
        raise Undecodable(f"header {CRC_HEADER} is {quote(headers[CRC_HEADER])}, the value's is {right!r}")
    return value, headers


def check_key(key: bytes | None, run: int) -> None:
    """Raise Undecodable where the message has a key that is not the run of its value."""
    if key is not None and key != b"%d" % run:
        raise Undecodable(f"the key is {quote(key)}, the value is of run {run}")


def _read_headers(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """Headers in READ_HEADERS, a missing value as an empty one. Raises Undecodable where one comes with two values."""
    found: dict[str, bytes] = {}
    for name, content in headers:
        if name in READ_HEADERS and found.setdefault(name, content or b"") != (content or b""):
            raise Undecodable(f"header {name} comes twice, with different values")
    return found
