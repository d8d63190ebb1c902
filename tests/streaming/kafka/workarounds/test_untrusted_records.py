"""Batches from anybody, in each codec: header names that are not UTF-8, batches that unpack to too much, missing codecs."""

from __future__ import annotations

import sys
import tracemalloc
from contextlib import suppress

import cramjam
import pytest
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder

from dqmstream.errors import BrokerError
from dqmstream.streaming.kafka.codecs import CODECS, missing_codecs, unpack
from dqmstream.streaming.kafka.workarounds import untrusted_records
from dqmstream.streaming.kafka.workarounds.untrusted_records import Batch
from tests.hostile import NAME

PACKED = list(CODECS)


def packed(codec: int, *values: bytes, name: str = "name") -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=2**30,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, 1000 + offset, b"key", value, [("a", b"1"), (name, b"2")])
    return bytes(builder.build())


@pytest.mark.parametrize("codec", [0, *PACKED])
@pytest.mark.parametrize("name", ["name", "naïve", NAME], ids=["ascii", "utf-8", "no text"])
def test_every_record_of_a_batch_is_read(codec: int, name: str) -> None:
    found = list(Batch(packed(codec, b"x" * 10_000, b"", b"z", name=name)).messages(3))
    assert [(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in found] == [
        (3, 0, 1000, b"key", b"x" * 10_000), (3, 1, 1001, b"key", b""), (3, 2, 1002, b"key", b"z"),
    ]  # fmt: skip
    assert [r.headers for r in found] == [[("a", b"1"), (str(name), b"2")]] * 3


@pytest.mark.parametrize("codec", PACKED)
def test_a_batch_that_unpacks_to_too_much_is_refused(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(codec, bytes(64 * 2**20))
    assert len(bomb) < 2**22
    monkeypatch.setattr(untrusted_records, "MAX_UNPACKED_BYTES", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecordError, match="unpack to more than 1048576"):
            list(Batch(bomb).messages(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert [r.value for r in Batch(packed(codec, bytes(2**19))).messages(0)] == [bytes(2**19)]


@pytest.mark.parametrize("codec", PACKED)
def test_a_batch_that_is_damaged_in_any_byte_or_was_cut_is_refused_as_damaged(codec: int) -> None:
    """With no other error, since all others end the service. What a codec does not notice, the batch's checksum does."""
    whole = packed(codec, bytes(range(256)) * 20)
    for cut in (1, 5, 20, len(whole) - 61):
        with pytest.raises(CorruptRecordError):
            list(Batch(whole[:-cut]).messages(0))
    for at in range(61, len(whole)):
        for flip in (0x01, 0xFF):
            hurt = bytearray(whole)
            hurt[at] ^= flip
            with suppress(CorruptRecordError):
                list(Batch(bytes(hurt)).messages(0))


@pytest.mark.parametrize("codec", PACKED)
def test_a_codec_that_is_missing_is_named_with_its_package_and_is_no_damage(
    codec: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, module, package, _ = CODECS[codec]
    batch = Batch(packed(codec, bytes(10_000)))
    assert missing_codecs() == {}
    monkeypatch.setitem(sys.modules, module, None)
    assert missing_codecs() == {name: package}
    with pytest.raises(BrokerError, match=f"compressed with {name}, which needs the package {package}: pip install {package}"):
        list(batch.messages(0))


def test_a_codec_that_no_version_knows_is_no_damage() -> None:
    with pytest.raises(BrokerError, match="codec 5, which this version of dqmstream does not know"):
        unpack(5, memoryview(b"x"), 100)


@pytest.mark.parametrize("xerial", [True, False], ids=["in blocks", "one block"])
def test_snappy_is_read_as_each_producer_writes_it_and_its_claims_are_bounded(xerial: bool) -> None:
    value = bytes(range(256)) * 500
    blocks = [value[at : at + 32768] for at in range(0, len(value), 32768)] if xerial else [value]
    pieces = [bytes(cramjam.snappy.compress_raw(block)) for block in blocks]
    stream = b"\x82SNAPPY\0" + bytes(8) + b"".join(len(piece).to_bytes(4, "big") + piece for piece in pieces)
    written = memoryview(stream if xerial else pieces[0])
    assert unpack(2, written, len(value)) == value
    with pytest.raises(CorruptRecordError, match="unpack to more than 127999 bytes"):
        unpack(2, written, len(value) - 1)
    four_gigabytes = b"\xff\xff\xff\xff\x0f" + bytes(20)
    with pytest.raises(CorruptRecordError, match="unpack to more than"):
        unpack(2, memoryview(four_gigabytes), 2**28)
