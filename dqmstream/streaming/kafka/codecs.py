"""Kafka's codecs, each unpacking within a bound of bytes.

Only damaged data raise CorruptRecordError. A codec that is not installed or not known raises BrokerError, and a lack of memory
MemoryError: neither is the message's fault, and both end the service before any offset of the batch is passed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from kafka.errors import CorruptRecordError

from dqmstream.errors import BrokerError

PIECE_BYTES = 2**20
"""Unpacked at a time where a frame does not give its size."""

XERIAL = b"\x82SNAPPY\0"
"""Magic bytes of snappy in blocks, as Java's client writes it; two versions of 4 bytes each follow."""

XERIAL_HEADER_BYTES = 16

LZ4_HEADER = (7, 15)
"""Bytes of an lz4 frame's header without and with the size of the content."""


class TooLarge(CorruptRecordError):
    """The data unpack to more than they may."""


class Codec(NamedTuple):
    """unpack: from (module, packed, most) at most `most` bytes; raises TooLarge, CorruptRecordError, MemoryError.

    module: what is imported. package: what is installed for it.
    """

    name: str
    module: str
    package: str
    unpack: Callable[[ModuleType, memoryview, int], bytes]


def unpack(codec: int, packed: memoryview, most: int) -> bytes:
    """The unpacked bytes. codec: Kafka's number of it.

    Raises TooLarge for more than `most` bytes, CorruptRecordError for damaged data, BrokerError where the codec is not
    installed or not known, MemoryError.
    """
    found = CODECS.get(codec)
    if found is None:
        raise BrokerError(
            f"it is compressed with codec {codec}, which this version of dqmstream does not know: update dqmstream, or have "
            "the producers use another compression.type"
        )
    return found.unpack(_module(found), packed, most)


def missing_codecs() -> dict[str, str]:
    """Names of the codecs that are not installed, with the package that each needs."""
    missing = {}
    for codec in CODECS.values():
        try:
            _module(codec)
        except BrokerError:
            missing[codec.name] = codec.package
    return missing


def _module(codec: Codec) -> ModuleType:
    try:
        return import_module(codec.module)
    except ImportError as error:
        raise BrokerError(
            f"it is compressed with {codec.name}, which needs the package {codec.package}: pip install {codec.package}, then "
            "start again"
        ) from error


def _within(unpacked: bytes, most: int) -> bytes:
    if len(unpacked) > most:
        raise TooLarge(f"the data unpack to more than {most} bytes")
    return unpacked


def _unpack_gzip(_: ModuleType, packed: memoryview, most: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as reader:
            return _within(reader.read(most + 1), most)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptRecordError(f"gzip: {error}") from error


def _unpack_lz4(lz4: ModuleType, packed: memoryview, most: int) -> bytes:
    reader = lz4.LZ4FrameDecompressor()
    try:
        unpacked = bytes(reader.decompress(packed, max_length=most + 1))
    except RuntimeError as error:  # the only kind that the package has
        _raise_lack_of_memory(error)
        raise CorruptRecordError(f"lz4: {error}") from error
    if not reader.eof and len(unpacked) <= most:
        raise CorruptRecordError("lz4: the frame ends early")
    return _within(unpacked, most)


def unpack_old_lz4(packed: memoryview, most: int) -> bytes:
    """lz4 of messages in format 0. Their frame headers have a wrong checksum, which is replaced by the right one.

    Raises as `unpack`.
    """
    lz4 = _module(CODECS[3])
    size = LZ4_HEADER[len(packed) > 4 and bool(packed[4] & 8)]
    for checksum in range(256):
        mended = bytes(packed[: size - 1]) + bytes([checksum]) + bytes(packed[size:])
        try:
            lz4.get_frame_info(mended[:size])
        except RuntimeError:
            continue
        return _unpack_lz4(lz4, memoryview(mended), most)
    raise CorruptRecordError("lz4: the frame's header is damaged")


def _unpack_zstd(zstandard: ModuleType, packed: memoryview, most: int) -> bytes:
    pieces: list[bytes] = []
    left = most + 1
    try:
        # A large buffer costs time, so no more is asked for than the frame needs.
        told = zstandard.frame_content_size(packed)  # -1 where it does not say
        with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
            while left > 0 and (piece := reader.read(min(left, PIECE_BYTES if pieces or told <= 0 else told))):
                pieces.append(piece)
                left -= len(piece)
    except zstandard.ZstdError as error:
        _raise_lack_of_memory(error)
        raise CorruptRecordError(f"zstd: {error}") from error
    return _within(pieces[0] if len(pieces) == 1 else b"".join(pieces), most)


def _unpack_snappy(cramjam: ModuleType, packed: memoryview, most: int) -> bytes:
    blocks = _snappy_blocks(packed) if packed[: len(XERIAL)] == XERIAL else [packed]
    pieces: list[bytes] = []
    left = most
    try:
        for block in blocks:
            told = cramjam.snappy.decompress_raw_len(block)
            if told > left:
                raise TooLarge(f"the data unpack to more than {most} bytes")
            piece = bytearray(told)  # allocated here: without memory the library would end the process
            cramjam.snappy.decompress_raw_into(block, piece)
            pieces.append(bytes(piece))
            left -= told
    except cramjam.DecompressionError as error:
        raise CorruptRecordError(str(error)) from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _snappy_blocks(packed: memoryview) -> list[memoryview]:
    """The blocks of a xerial stream: behind the header, each follows its length (4 bytes, big-endian)."""
    blocks, at = [], XERIAL_HEADER_BYTES
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4], "big", signed=True)
        if size < 0 or at + 4 + size > len(packed):
            raise CorruptRecordError(f"snappy: a block of {size} bytes where {len(packed) - at - 4} follow")
        blocks.append(packed[at + 4 : at + 4 + size])
        at += 4 + size
    return blocks


def _raise_lack_of_memory(error: Exception) -> None:
    """Raise MemoryError where a library's error says that no memory is left."""
    if any(word in str(error).lower() for word in ("not enough memory", "allocation")):
        raise MemoryError(str(error)) from error


CODECS: dict[int, Codec] = {
    1: Codec("gzip", "gzip", "gzip", _unpack_gzip),
    2: Codec("snappy", "cramjam", "cramjam", _unpack_snappy),
    3: Codec("lz4", "lz4.frame", "lz4", _unpack_lz4),
    4: Codec("zstd", "zstandard", "zstandard", _unpack_zstd),
}
"""By Kafka's number of the codec, which is also the value of the last three bits of a batch's attributes."""
