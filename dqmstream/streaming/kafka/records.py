"""The records of one batch, whoever sent it.

The client's own reader believes in producers: it raises at the name of a header that is no UTF-8, which costs the whole
batch, and it unpacks whatever a batch unpacks to, which a megabyte of zeros can make gigabytes.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

MAX_UNPACKED_BYTES = 256 * 2**20
"""Of one batch. A broker takes a megabyte packed unless told otherwise, and occupancy maps pack to a tenth at best."""


class Batch(DefaultRecordBatch):
    """A batch whose headers may have any bytes for names, and that is unpacked within bounds.

    Raises CorruptRecordError, as for other damage, where it unpacks to more than MAX_UNPACKED_BYTES.
    """

    _buffer: bytes | bytearray
    _pos: int
    _decompressed: bool

    def _read_msg(self, *settings: Any) -> Any:
        try:
            return super()._read_msg(*settings)
        except UnicodeDecodeError:
            # Where to read on is noted only when a record was read.
            self._buffer = _Escaping(self._buffer)
            return super()._read_msg(*settings)

    def _maybe_uncompress(self) -> None:
        unpack = UNPACK.get(self.compression_type)
        if unpack is not None and not self._decompressed:
            self._assert_has_codec(self.compression_type)
            unpacked = unpack(bytes(memoryview(self._buffer)[self._pos :]), MAX_UNPACKED_BYTES + 1)
            if len(unpacked) > MAX_UNPACKED_BYTES:
                raise CorruptRecordError(f"{len(self._buffer)} bytes that unpack to more than {MAX_UNPACKED_BYTES}")
            self._buffer, self._pos, self._decompressed = bytearray(unpacked), 0, True
        super()._maybe_uncompress()


class _Escaping(bytes):
    """Bytes whose parts, read as text, have what is no UTF-8 escaped."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Escaping(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


def _unpack_gzip(packed: bytes, most: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as reader:
        return reader.read(most)


def _unpack_lz4(packed: bytes, most: int) -> bytes:
    return bytes(lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=most))


def _unpack_zstd(packed: bytes, most: int) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True) as reader:
        return reader.read(most)


UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    DefaultRecordBatch.CODEC_GZIP: _unpack_gzip,
    DefaultRecordBatch.CODEC_LZ4: _unpack_lz4,
    DefaultRecordBatch.CODEC_ZSTD: _unpack_zstd,
}
"""By codec: the first so many bytes of what is packed. Snappy is left to the client, which has no codec for it here."""
