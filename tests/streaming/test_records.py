"""A batch of records from anybody: names of headers that are no text, and batches that unpack to more than memory holds."""

from __future__ import annotations

import tracemalloc

import pytest
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder

from dqmstream.streaming.kafka import records
from dqmstream.streaming.kafka.records import UNPACK, Batch
from tests.hostile import NAME

CODECS = [0, *UNPACK]


def packed(codec: int, *values: bytes, name: str = "name") -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=2**30,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, 1000 + offset, b"key", value, [("a", b"1"), (name, b"2")])
    return bytes(builder.build())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["name", "naïve", NAME], ids=["ascii", "utf-8", "no text"])
def test_every_record_of_a_batch_is_read(codec: int, name: str) -> None:
    found = list(Batch(packed(codec, b"x" * 10_000, b"", b"z", name=name)).messages(3))
    assert [(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in found] == [
        (3, 0, 1000, b"key", b"x" * 10_000), (3, 1, 1001, b"key", b""), (3, 2, 1002, b"key", b"z"),
    ]  # fmt: skip
    assert [r.headers for r in found] == [[("a", b"1"), (str(name), b"2")]] * 3


@pytest.mark.parametrize("codec", list(UNPACK))
def test_a_batch_that_unpacks_to_too_much_is_refused(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(codec, bytes(64 * 2**20))
    assert len(bomb) < 2**19
    monkeypatch.setattr(records, "MAX_UNPACKED_BYTES", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecordError, match="unpack to more than 1048576"):
            list(Batch(bomb).messages(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert [r.value for r in Batch(packed(codec, bytes(2**19))).messages(0)] == [bytes(2**19)]


@pytest.mark.parametrize("codec", list(UNPACK))
def test_a_batch_that_was_cut_is_refused(codec: int) -> None:
    whole = packed(codec, bytes(range(256)) * 100)
    with pytest.raises(Exception):  # noqa: B017 - as many kinds as there are codecs; the feed takes them all
        list(Batch(whole[:-20]).messages(0))
