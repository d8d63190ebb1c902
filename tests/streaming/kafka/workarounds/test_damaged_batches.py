"""A batch that cannot be read costs its own offsets and no others, in every format and codec."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest
from kafka import TopicPartition
from kafka.record import MemoryRecords

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka import old_formats
from dqmstream.streaming.kafka.batches import HEADER_BYTES
from dqmstream.streaming.kafka.workarounds import untrusted_records
from dqmstream.streaming.kafka.workarounds.damaged_batches import BatchReader, Suspects
from dqmstream.streaming.message import Message
from tests.streaming.kafka.segments import FORMATS, batch

HERE = TopicPartition("hcal", 0)
BATCH = 4
"""Messages in each batch of `log`."""


def value_of(offset: int) -> bytes:
    return b"message %d \x02" % offset + bytes(range(40))


def log(batches: int, first: int = 100) -> list[bytes]:
    starts = range(first, first + batches * BATCH, BATCH)
    return [batch(start, [value_of(start + k) for k in range(BATCH)]) for start in starts]


def read(segments: Sequence[bytes], start: int, end: int, *, fetches: int = 40) -> list[Message]:
    """All messages until `end`, fetching from the reader's position on. segments: what each fetch finds; the last one stays."""
    suspects, found = Suspects(), []
    for k in range(fetches):
        segment = segments[min(k, len(segments) - 1)]
        reader = BatchReader(suspects, lambda tp: end, start, HERE, MemoryRecords(serve(segment, start)))
        while reader:
            found += reader.take(7)
        assert reader.next_fetch_offset >= start
        start = reader.next_fetch_offset
        if start >= end:
            return found
    raise AssertionError(f"{start} of {end} after {fetches} fetches")


def serve(segment: bytes, start: int) -> bytes:
    """A broker's answer: everything from the batch on that ends at or behind start, found by the headers."""
    at = 0
    while at + 27 <= len(segment):
        first = int.from_bytes(segment[at : at + 8], "big", signed=True)
        length = int.from_bytes(segment[at + 8 : at + 12], "big", signed=True)
        delta = int.from_bytes(segment[at + 23 : at + 27], "big", signed=True) if segment[at + 16] not in (0, 1) else 0
        if first + delta >= start or length < 14:
            break
        at += 12 + length
    return segment[at:] or segment


def check(found: Sequence[Message], first: int, end: int, damaged: set[int], value: Callable[[int], bytes] = value_of) -> None:
    """Every offset comes at most once, in order, and as it was sent; only damaged ones may be unreadable or missing."""
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    assert set(range(first, end)) - damaged <= set(offsets) <= set(range(first, end))
    for record in found:
        if record.error:
            assert record.offset in damaged, record
            assert record.error.startswith("the client cannot read it: ")
        else:
            assert record.value == value(record.offset)


def test_a_sound_log_is_read_whole() -> None:
    check(read([b"".join(log(5))], 100, 120), 100, 120, set())
    check(read([b"".join(log(5))], 106, 120), 106, 120, set())


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("flip", [0x01, 0x02, 0x03, 0x80, 0xFF])
def test_whichever_byte_of_a_batch_is_damaged_the_others_are_read(place: int, flip: int) -> None:
    """The header byte by byte, then every third byte of the messages."""
    parts = log(3)
    damaged = set(range(100 + place * BATCH, 100 + (place + 1) * BATCH))
    for at in (*range(HEADER_BYTES), *range(HEADER_BYTES, len(parts[place]), 3)):
        hurt = bytearray(parts[place])
        hurt[at] ^= flip
        segment = b"".join([*parts[:place], bytes(hurt), *parts[place + 1 :]])
        try:
            check(read([segment], 100, 112), 100, 112, damaged)
        except AssertionError as error:
            raise AssertionError(f"byte {at} of batch {place}") from error


def test_damage_on_the_way_is_mended_by_fetching_again() -> None:
    segment = b"".join(log(3))
    hurt = segment[:-5] + b"\0\0\0\0\0"
    check(read([hurt, segment], 100, 112), 100, 112, set())


def test_damage_across_two_batches_costs_these_two() -> None:
    parts = log(4)
    segment = bytearray(b"".join(parts))
    seam = len(parts[0]) + len(parts[1])
    segment[seam - 20 : seam + 30] = bytes(50)
    check(read([bytes(segment)], 100, 116), 100, 116, set(range(104, 112)))


def test_a_large_damaged_batch_is_passed_in_three_fetches() -> None:
    large = bytearray(batch(0, [b"x" * 100] * 900))
    large[5000] ^= 1
    parts = [bytes(large), batch(900, [value_of(900)])]
    found = read([b"".join(parts)], 0, 901, fetches=3)
    check(found, 0, 901, set(range(900)))
    assert len(found) == 901
    assert len(read([bytes(large)], 0, 900, fetches=3)) == 900  # and where nothing lies behind it


def wide(offset: int) -> bytes:
    return b"message %d \x02" % offset + bytes(400)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_codec_is_read_from_any_offset(name: str) -> None:
    lay = FORMATS[name]
    segment = b"".join(lay(start, [wide(start + k) for k in range(BATCH)]) for start in (100, 104, 108))
    assert (len(segment) < 12 * 200) is not name.endswith("none")  # it is packed
    for start in range(100, 112):
        found = read([segment], start, 112)
        assert [(m.offset, m.value, m.key, m.error) for m in found] == [(k, wide(k), b"7", "") for k in range(start, 112)]
        assert {m.timestamp_ms for m in found} == {0 if name.startswith("0") else 1}


@pytest.mark.parametrize("name", [name for name in FORMATS if name[0] in "01"])
def test_a_damaged_message_of_an_old_format_costs_what_it_holds_and_no_other(name: str) -> None:
    parts = [FORMATS[name](start, [wide(start + k) for k in range(BATCH)]) for start in (100, 104, 108)]
    size = len(parts[1]) // (BATCH if name.endswith("none") else 1)
    for at in (at for at in range(0, len(parts[1]), 5) if at % size >= 12):  # of the length below, the broker is lost itself
        hurt = bytearray(parts[1])
        hurt[at] ^= 0x55
        found = read([b"".join([parts[0], bytes(hurt), parts[2]])], 100, 112)
        check(found, 100, 112, set(range(104, 108)), wide)


@pytest.mark.parametrize(
    "error",
    [MemoryError("no memory left"), AttributeError("a library's bug"), BrokerError("no codec")],
    ids=["memory", "bug", "codec"],
)
@pytest.mark.parametrize("name", ["2-zstd", "1-gzip"])
def test_what_is_no_fault_of_the_batch_passes_no_offset_of_it(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch before it is read; the reader stays at its first offset, and reads it once the fault is gone."""
    segment = FORMATS[name](104, [wide(104 + k) for k in range(BATCH)])
    whole = log(1)[0] + segment

    def fail(*arguments: object) -> bytes:
        raise error

    suspects = Suspects()
    with monkeypatch.context() as patched:
        patched.setattr(untrusted_records, "unpack", fail)
        patched.setattr(old_formats, "unpack", fail)
        for _ in range(3):  # as often as it is fetched
            reader = BatchReader(suspects, lambda tp: 108, 100, HERE, MemoryRecords(whole))
            assert [m.offset for m in reader.take(4)] == [100, 101, 102, 103]
            with pytest.raises(type(error), match=str(error)):
                reader.take(4)
            assert reader.next_fetch_offset == 104
    assert [m.value for m in read([segment], 104, 108)] == [wide(104 + k) for k in range(BATCH)]


def test_a_codec_that_is_missing_ends_the_feed_with_the_offset_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(
        BrokerError, match=r"hcal/0 cannot be read on from offset 104: it is compressed with snappy, .* install"
    ):
        read([FORMATS["2-snappy"](104, [wide(104 + k) for k in range(BATCH)])], 104, 108)
