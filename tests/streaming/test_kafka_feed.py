"""The Kafka feed below the group: damaged batches, gaps, a held feed, and a client that no longer reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from kafka import TopicPartition
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from dqmstream.streaming.kafka.batches import HEADER_BYTES, BatchReader, Suspects, Unreadable

HERE = TopicPartition("hcal", 0)
BATCH = 4
"""Messages in each batch of `log`."""


def batch(offset: int, values: Sequence[bytes], codec: int = 0) -> bytes:
    """A record batch as it lies in a segment file."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=2**20)
    for value in values:
        builder.append(timestamp=1, key=b"7", value=value, headers=[])
    builder.close()
    found = bytearray(builder.buffer())
    found[:8] = offset.to_bytes(8, "big")  # the broker's to give
    return bytes(found)


def value_of(offset: int) -> bytes:
    return b"message %d \x02" % offset + bytes(range(40))


def log(batches: int, first: int = 100) -> list[bytes]:
    starts = range(first, first + batches * BATCH, BATCH)
    return [batch(start, [value_of(start + k) for k in range(BATCH)]) for start in starts]


def read(segment: bytes, start: int, end: int, *, fetches: int = 40, size: int = 7) -> list[object]:
    """All that a fetcher hands out of a segment until `end`, a fresh fetch from its position each time as a broker serves it:
    from the batch that holds the position on, which the broker finds by its headers, or the whole segment where it cannot."""
    suspects, found = Suspects(), []
    for _ in range(fetches):
        reader = BatchReader(suspects, lambda tp: end, start, HERE, MemoryRecords(serve(segment, start)))
        while reader:
            found += reader.take(size)
        assert reader.next_fetch_offset >= start
        start = reader.next_fetch_offset
        if start >= end:
            return found
    raise AssertionError(f"{start} of {end} after {fetches} fetches")


def serve(segment: bytes, start: int) -> bytes:
    """What a broker sends: it follows the headers to the batch that ends at or behind start, and sends all from there."""
    at = 0
    while at + HEADER_BYTES <= len(segment):
        first = int.from_bytes(segment[at : at + 8], "big", signed=True)
        length = int.from_bytes(segment[at + 8 : at + 12], "big", signed=True)
        delta = int.from_bytes(segment[at + 23 : at + 27], "big", signed=True)
        if first + delta >= start or length < 14:
            break
        at += 12 + length
    return segment[at:] or segment


def check(found: Sequence[object], first: int, end: int, damaged: set[int]) -> None:
    """Every offset at most once and in order, what is sound as it was sent, nothing unreadable or left out but what may be."""
    offsets = [record.offset for record in found]  # type: ignore[attr-defined]
    assert offsets == sorted(set(offsets))
    assert set(range(first, end)) - damaged <= set(offsets) <= set(range(first, end))
    for record in found:
        if isinstance(record, Unreadable):
            assert record.offset in damaged, record
            assert record.reason.startswith("the client cannot read it: ")
        else:
            assert record.value == value_of(record.offset)  # type: ignore[attr-defined]


def test_a_sound_log_is_read_whole() -> None:
    check(read(b"".join(log(5)), 100, 120), 100, 120, set())
    check(read(b"".join(log(5)), 106, 120), 106, 120, set())


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_whichever_byte_of_a_batch_is_damaged_the_others_are_read(place: int, flip: int) -> None:
    """The header byte by byte, then every third byte of the messages."""
    parts = log(3)
    damaged = set(range(100 + place * BATCH, 100 + (place + 1) * BATCH))
    for at in (*range(HEADER_BYTES), *range(HEADER_BYTES, len(parts[place]), 3)):
        hurt = bytearray(parts[place])
        hurt[at] ^= flip
        segment = b"".join([*parts[:place], bytes(hurt), *parts[place + 1 :]])
        try:
            check(read(segment, 100, 112), 100, 112, damaged)
        except AssertionError as error:
            raise AssertionError(f"byte {at} of batch {place}") from error
