"""Reading the records of a batch that may come from anybody.

Mended: the client raises at a header name that is not UTF-8, which costs the whole batch; it unpacks a batch without a bound,
so that a megabyte of zeros makes gigabytes, and of a zstd frame that does not tell its size no more than 1 MiB; and it copies
each value three times and makes two objects of each record. Seen with kafka-python 3.0.12. The limit for zstd is known as
dpkp/kafka-python issue 2594 (closed); the rest is not reported upstream.
"""

from __future__ import annotations

from collections.abc import Iterator

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from dqmstream.streaming.kafka.codecs import unpack
from dqmstream.streaming.message import Message

MAX_UNPACKED_BYTES = 256 * 2**20
"""Of one batch. A broker accepts a packed megabyte unless set otherwise, and occupancy maps pack to a tenth at best."""


class Batch(DefaultRecordBatch):
    """A batch in format 2. Names of headers may be any bytes, and unpacking is bounded.

    buffer: the whole batch; it is not copied, and must not change.
    """

    _buffer: memoryview

    def __init__(self, buffer: bytes | memoryview) -> None:
        super().__init__(buffer[: self.HEADER_STRUCT.size])
        self._buffer = memoryview(buffer)

    def messages(self, partition: int) -> Iterator[Message]:
        """The messages, of this partition.

        Raises CorruptRecordError where they are not what the batch claims, or unpack to more than MAX_UNPACKED_BYTES;
        BrokerError where the codec is not installed or not known; MemoryError.
        """
        records, at = self._records(), 0
        for _ in range(self.records_count):
            try:
                message, at = self._message(records, at, partition)
            except (ValueError, IndexError) as error:
                raise CorruptRecordError(f"Found invalid record structure: {error!r}") from error
            yield message
        if at != len(records):
            raise CorruptRecordError(f"{len(records) - at} unconsumed bytes after all records consumed")

    def _records(self) -> bytes | memoryview:
        """The unpacked records."""
        packed = self._buffer[self.HEADER_STRUCT.size :]
        if self.compression_type == self.CODEC_NONE:
            return packed
        return unpack(self.compression_type, packed, MAX_UNPACKED_BYTES)

    def _message(self, records: bytes | memoryview, at: int, partition: int) -> tuple[Message, int]:
        """The message that begins at `at`, and where the next one begins.

        Record => length attributes timestamp_delta offset_delta key value headers. The attributes are one byte, all numbers
        are variable-length integers, and a text follows its length, which is -1 where there is no text.
        """
        length, start = decode_varint(records, at)
        later_ms, at = decode_varint(records, start + 1)
        delta, at = decode_varint(records, at)
        key, at = _bytes(records, at)
        value, at = _bytes(records, at)
        count, at = decode_varint(records, at)
        if count < 0:
            raise CorruptRecordError(f"Found invalid number of record headers {count}")
        headers = []
        for _ in range(count):
            size, at = decode_varint(records, at)
            if size < 0:
                raise CorruptRecordError(f"Found invalid negative header key size {size}")
            name = str(records[at : at + size], "utf-8", "backslashreplace")
            content, at = _bytes(records, at + size)
            headers.append((name, content))
        if at - start != length or at > len(records):
            raise CorruptRecordError(f"Invalid record size: {length} bytes are told, {at - start} were read")
        time_ms = self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else self.first_timestamp + later_ms
        return Message(partition, self.base_offset + delta, key, value, headers, max(time_ms, 0)), at


def _bytes(records: bytes | memoryview, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(records, at)
    return (None, at) if size < 0 else (bytes(records[at : at + size]), at + size)
