"""The messages of one batch, whoever sent it.

The client's own reader believes in producers: it raises at the name of a header that is no UTF-8, which costs the whole
batch, and it unpacks whatever a batch unpacks to, which a megabyte of zeros can make gigabytes. It also copies each value
three times and makes two objects of each record, which costs more than all that is done with it here.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from kafka.codec import snappy_decode
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from dqmstream.streaming.feed import Message

MAX_UNPACKED_BYTES = 256 * 2**20
"""Of one batch. A broker takes a megabyte packed unless told otherwise, and occupancy maps pack to a tenth at best."""

PIECE_BYTES = 2**20
"""Of what is unpacked, where it is not told how much that is."""


class Batch(DefaultRecordBatch):
    """A batch whose headers may have any bytes for names, and that is unpacked within bounds.

    buffer: all of the batch; it is not copied, and must not change.
    """

    _buffer: memoryview

    def __init__(self, buffer: bytes | memoryview) -> None:
        super().__init__(buffer[: self.HEADER_STRUCT.size])
        self._buffer = memoryview(buffer)

    def messages(self, partition: int) -> Iterator[Message]:
        """The messages, as ones of this partition.

        Raises CorruptRecordError where they are not what the batch claims, or it unpacks to more than MAX_UNPACKED_BYTES.
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
        """What follows the header, unpacked."""
        packed = self._buffer[self.HEADER_STRUCT.size :]
        if self.compression_type == self.CODEC_NONE:
            return packed
        self._assert_has_codec(self.compression_type)
        unpacked = UNPACK.get(self.compression_type, _unpack_snappy)(packed, MAX_UNPACKED_BYTES + 1)
        if len(unpacked) > MAX_UNPACKED_BYTES:
            raise CorruptRecordError(f"{len(self._buffer)} bytes that unpack to more than {MAX_UNPACKED_BYTES}")
        return unpacked

    def _message(self, records: bytes | memoryview, at: int, partition: int) -> tuple[Message, int]:
        """The message that begins at `at`, and where the next one begins.

        Record => length attributes timestamp_delta offset_delta key value headers, where the attributes are one byte, all
        numbers variable-length integers, and texts have their length before them, -1 where there is none.
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


def _unpack_gzip(packed: memoryview, most: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as reader:
        return reader.read(most)


def _unpack_lz4(packed: memoryview, most: int) -> bytes:
    return bytes(lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=most))


def _unpack_zstd(packed: memoryview, most: int) -> bytes:
    """The room that is asked for is filled by the kernel page by page: no more of it than the frame says that it needs."""
    told = zstandard.frame_content_size(packed)  # -1 where it does not say
    pieces: list[bytes] = []
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
        while most > 0 and (piece := reader.read(min(most, PIECE_BYTES if pieces or told <= 0 else told))):
            pieces.append(piece)
            most -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unpack_snappy(packed: memoryview, most: int) -> bytes:
    unpacked: bytes = snappy_decode(packed.tobytes())
    return unpacked


UNPACK: dict[int, Callable[[memoryview, int], bytes]] = {
    DefaultRecordBatch.CODEC_GZIP: _unpack_gzip,
    DefaultRecordBatch.CODEC_LZ4: _unpack_lz4,
    DefaultRecordBatch.CODEC_ZSTD: _unpack_zstd,
}
"""By codec: the first so many bytes of what is packed. Snappy is left to the client, which has no codec for it unless it is
installed, and then no bound."""
