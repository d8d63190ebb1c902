"""Batches of every format and codec, as they lie in a segment file."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import cramjam
import lz4.frame
from kafka.record import MemoryRecordsBuilder


def batch(offset: int, values: Sequence[bytes], codec: int = 0) -> bytes:
    """A record batch as it lies in a segment file."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=2**20)
    for value in values:
        builder.append(timestamp=1, key=b"7", value=value, headers=[])
    builder.close()
    found = bytearray(builder.buffer())
    found[:8] = offset.to_bytes(8, "big")  # the broker's to give
    return bytes(found)


def old_batch(offset: int, values: Sequence[bytes], magic: int, codec: int) -> bytes:
    """Messages of format 0 or 1 as they lie in a segment file: one by one, or wrapped in one that has the last one's offset."""
    builder = MemoryRecordsBuilder(magic=magic, compression_type=codec, batch_size=2**20)
    for value in values:
        builder.append(timestamp=1, key=b"7", value=value, headers=[])
    builder.close()
    found = bytearray(builder.buffer())
    if codec:
        return bytes((offset + len(values) - 1).to_bytes(8, "big") + found[8:])
    at = 0
    for k in range(len(values)):
        found[at : at + 8] = (offset + k).to_bytes(8, "big")
        at += 12 + int.from_bytes(found[at + 8 : at + 12], "big")
    return bytes(found)


def absolute(offset: int, values: Sequence[bytes], codec: int) -> bytes:
    """A message of format 0 that wraps others: offsets are absolute, and an lz4 frame has the old, wrong checksum."""
    plain = old_batch(offset, values, 0, 0)
    inner = {1: gzip.compress, 2: cramjam.snappy.compress_raw, 3: lz4.frame.compress}[codec](plain)
    inner = bytearray(bytes(inner))
    if codec == 3:
        inner[14 if inner[4] & 8 else 6] ^= 0x5A
    after_crc = struct.pack(">bbii", 0, codec, -1, len(inner)) + inner
    return struct.pack(">qiI", offset + len(values) - 1, 4 + len(after_crc), zlib.crc32(after_crc)) + after_crc


def formats() -> Iterator[tuple[str, Callable[[int, Sequence[bytes]], bytes]]]:
    """By format and codec, how values from an offset on are laid out. They must pack well, or the builder omits the codec."""
    for codec, name in enumerate(("none", "gzip", "snappy", "lz4", "zstd")):
        yield f"2-{name}", partial(batch, codec=codec)
        if codec < 4:
            yield f"1-{name}", partial(old_batch, magic=1, codec=codec)
            yield f"0-{name}", partial(absolute, codec=codec) if codec else partial(old_batch, magic=0, codec=0)


FORMATS = dict(formats())
