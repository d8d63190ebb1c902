"""Kafka's message formats 0 and 1, which brokers up to 3.x keep for old producers and topics.

A message has no headers and a CRC32 of its own. It stands alone in the log, or many are compressed in the value of one that
wraps them and has the offset of the last. Offsets of wrapped messages are absolute in format 0; in format 1 they count from
the first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from kafka.errors import CorruptRecordError

from dqmstream.streaming.kafka.codecs import unpack, unpack_old_lz4
from dqmstream.streaming.kafka.workarounds.untrusted_records import MAX_UNPACKED_BYTES
from dqmstream.streaming.message import Message

OLD_HEADER = struct.Struct(">qiIbb")
"""Offset, length of what follows, CRC32 of what follows, format, attributes; in format 1 a timestamp follows."""

CRC_FROM = 16
CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
LZ4 = 3


class _OldMessage(NamedTuple):
    """One message as it lies in a buffer."""

    whole: memoryview
    offset: int
    crc: int
    format: int
    attributes: int
    timestamp_ms: int
    key: bytes | None
    value: memoryview | None


class OldBatch:
    """A message of format 0 or 1, or the many that it wraps, with the interface of `Batch`.

    buffer: the whole message; it is not copied, and must not change.
    """

    leader_epoch = -1
    is_control_batch = False
    records_count = 1

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.last_offset, _, self._crc, self.magic, self._attributes = OLD_HEADER.unpack_from(buffer)

    @property
    def base_offset(self) -> int:
        """The message's offset; of many wrapped ones the last one's, since only unpacking tells the first."""
        return self.last_offset

    @property
    def next_offset(self) -> int:
        return self.last_offset + 1

    @property
    def size_in_bytes(self) -> int:
        return len(self._buffer)

    def validate_crc(self) -> bool:
        return zlib.crc32(self._buffer[CRC_FROM:]) == self._crc

    def first_offset(self) -> int:
        """Offset of the first message. Raises as `messages`."""
        return _unwrap(_read(self._buffer, 0))[0].offset

    def messages(self, partition: int) -> Iterator[Message]:
        """The messages, of this partition. Raises as `Batch.messages`."""
        for found in _unwrap(_read(self._buffer, 0)):
            if zlib.crc32(found.whole[CRC_FROM:]) != found.crc:
                raise CorruptRecordError(f"the message at offset {found.offset} failed crc check")
            value = None if found.value is None else bytes(found.value)
            yield Message(partition, found.offset, found.key, value, (), max(found.timestamp_ms, 0))


def _unwrap(outer: _OldMessage) -> list[_OldMessage]:
    """The message itself, or those that it wraps, at least one, in the order of their offsets, with absolute offsets."""
    codec = outer.attributes & CODEC_MASK
    if codec == 0:
        return [outer]
    if outer.value is None:
        raise CorruptRecordError("a compressed message without a value")
    unpacked = (unpack_old_lz4 if (outer.format, codec) == (0, LZ4) else partial(unpack, codec))(
        outer.value, MAX_UNPACKED_BYTES
    )
    buffer, at = memoryview(unpacked), 0
    found: list[_OldMessage] = []
    while at < len(buffer):
        message = _read(buffer, at)
        if message.format != outer.format or message.attributes & CODEC_MASK:
            raise CorruptRecordError("a compressed message wraps one of another format, or one that is compressed again")
        if found and message.offset <= found[-1].offset:
            raise CorruptRecordError("the messages in a compressed one are not in the order of their offsets")
        found.append(message)
        at += len(message.whole)
    if not found:
        raise CorruptRecordError("a compressed message that wraps none")
    if outer.format == 0:
        if found[-1].offset != outer.offset:
            raise CorruptRecordError(f"a compressed message at offset {outer.offset} ends at {found[-1].offset}")
        return found
    ahead = outer.offset - found[-1].offset
    appended = bool(outer.attributes & LOG_APPEND_TIME)
    return [
        one._replace(offset=ahead + one.offset, timestamp_ms=outer.timestamp_ms if appended else one.timestamp_ms)
        for one in found
    ]


def _read(buffer: memoryview, at: int) -> _OldMessage:
    """The message that begins there. Raises CorruptRecordError where its length and those of its parts disagree."""
    try:
        offset, length, crc, kind, attributes = OLD_HEADER.unpack_from(buffer, at)
        place, until, timestamp_ms = at + OLD_HEADER.size, at + 12 + length, 0
        if kind not in (0, 1) or not place <= until <= len(buffer):
            raise CorruptRecordError(f"a message of format {kind} and {length} bytes is not what it claims to be")
        if kind == 1:
            (timestamp_ms,) = struct.unpack_from(">q", buffer, place)
            place += 8
        key, place = _bytes(buffer, place, until)
        value, place = _bytes(buffer, place, until)
    except struct.error as error:
        raise CorruptRecordError(f"a message ends early: {error}") from error
    if place != until:
        raise CorruptRecordError(f"a message of {length} bytes has {until - place} more than its parts")
    own_key = None if key is None else bytes(key)
    return _OldMessage(buffer[at:until], offset, crc, kind, attributes, timestamp_ms, own_key, value)


def _bytes(buffer: memoryview, at: int, until: int) -> tuple[memoryview | None, int]:
    (size,) = struct.unpack_from(">i", buffer, at)
    if size == -1:
        return None, at + 4
    if size < 0 or at + 4 + size > until:
        raise CorruptRecordError(f"a key or value of {size} bytes where {until - at - 4} follow")
    return buffer[at + 4 : at + 4 + size], at + 4 + size
