"""The Kafka feed below the group: damaged batches, gaps, a held feed, and a client that no longer reads."""

from __future__ import annotations

import gzip
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import cramjam
import lz4.frame
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError, GroupAuthorizationFailedError, KafkaTimeoutError, NodeNotReadyError
from kafka.record import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import OffsetAndMetadata

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.kafka import KafkaFeed, KafkaSender, create_topic, old_formats
from dqmstream.streaming.kafka.batches import HEADER_BYTES
from dqmstream.streaming.kafka.workarounds import private_names, untrusted_records
from dqmstream.streaming.kafka.workarounds.damaged_batches import BatchReader, Suspects
from dqmstream.streaming.kafka.workarounds.recreated_topics import Incarnation
from dqmstream.streaming.message import Message, Polled, Slice
from tests.scale import SESSION_MS
from tests.streaming.kafka.clients import recorded

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


def read(segments: Sequence[bytes], start: int, end: int, *, fetches: int = 40) -> list[Message]:
    """All that a fetcher hands out until `end`, fetching from its position on. segments: what the first, the second, ... fetch
    finds; the last one stays."""
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
    """What a broker sends: it follows the headers to the batch that ends at or behind start, and sends all from there."""
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
    """Every offset at most once and in order, what is sound as it was sent, nothing unreadable or left out but what may be."""
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
    """A message of format 0 that wraps others: their offsets are the log's own, and lz4's frame has the checksum of old."""
    plain = old_batch(offset, values, 0, 0)
    inner = {1: gzip.compress, 2: cramjam.snappy.compress_raw, 3: lz4.frame.compress}[codec](plain)
    inner = bytearray(bytes(inner))
    if codec == 3:
        inner[14 if inner[4] & 8 else 6] ^= 0x5A
    after_crc = struct.pack(">bbii", 0, codec, -1, len(inner)) + inner
    return struct.pack(">qiI", offset + len(values) - 1, 4 + len(after_crc), zlib.crc32(after_crc)) + after_crc


def formats() -> Iterator[tuple[str, Callable[[int, Sequence[bytes]], bytes]]]:
    """How each format and codec lays out values from an offset on, if they pack: the builder leaves the codec out if not."""
    for codec, name in enumerate(("none", "gzip", "snappy", "lz4", "zstd")):
        yield f"2-{name}", partial(batch, codec=codec)
        if codec < 4:
            yield f"1-{name}", partial(old_batch, magic=1, codec=codec)
            yield f"0-{name}", partial(absolute, codec=codec) if codec else partial(old_batch, magic=0, codec=0)


FORMATS = dict(formats())


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
    """The batch before it is given out; the reader stands at its first offset, and reads it when the fault is gone."""
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


def send(bootstrap: str, topic: str, values: Sequence[bytes]) -> None:
    with closing(KafkaSender(bootstrap, topic)) as sender:
        for value in values:
            sender.send(b"7", value, [])
        sender.flush()


@contextmanager
def started(bootstrap: str, topic: str, offset: int | None = None, **settings: object) -> Iterator[KafkaFeed]:
    """A feed on a topic of one partition, which was started there."""
    with closing(KafkaFeed(bootstrap, topic, f"group-{topic}", **settings)) as feed:  # type: ignore[arg-type]
        while not (assigned := feed.poll(0.2).assigned):
            pass
        feed.start(assigned[0], offset)
        yield feed


def poll_until(feed: KafkaFeed, enough: Callable[[list[Slice]], bool]) -> list[Slice]:
    slices: list[Slice] = []
    while not enough(slices):
        slices += feed.poll(0.2).slices
    return slices


def messages(slices: Sequence[Slice]) -> list[bytes | None]:
    return [message.value for piece in slices for message in piece.messages]


def delete_before(bootstrap: str, topic: str, offset: int) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_records({TopicPartition(topic, 0): offset})


VALUES = [b"%d" % number for number in range(10)]
NOTHING = Polled([], [], [])


@pytest.mark.kafka
def test_a_gap_at_the_start_is_told_and_what_follows_is_read(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    delete_before(bootstrap, topic, 6)
    with (
        pytest.raises(DataLostError, match=r"continues at offset 2, the broker begins at 6: 4 messages .* give --accept-gap"),
        started(bootstrap, topic, 2),
    ):
        pass
    with started(bootstrap, topic, 2, accept_gap=True) as feed:
        gap, *rest = poll_until(feed, lambda slices: messages(slices) == VALUES[6:])
        assert gap == Slice(0, 2, 6, (), gap="retention deleted offsets 2 to 5 before they were read")
        assert rest[0].start == 6
        with pytest.raises(DataLostError, match=r"at offset 11, the broker ends at 10: .* make it again"):
            feed.start(0, 11)


@pytest.mark.kafka
def test_a_gap_in_the_midst_is_told_and_what_follows_is_read(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, topic, 1)
    with started(bootstrap, topic, accept_gap=True) as feed:
        send(bootstrap, topic, VALUES[:2])
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 2)) == VALUES[:2]
        feed.hold(True)
        assert feed.poll(1) == NOTHING  # longer than a fetch that is under way
        send(bootstrap, topic, VALUES[2:])
        delete_before(bootstrap, topic, 8)
        assert feed.poll(0.1) == NOTHING
        feed.hold(False)
        gap, *rest = poll_until(feed, lambda slices: messages(slices) == VALUES[8:])
        assert gap == Slice(0, 2, 8, (), gap="retention deleted offsets 2 to 7 before they were read")
        assert rest[0].start == 8


@pytest.mark.kafka
def test_a_held_feed_gives_nothing_stays_in_its_group_and_goes_on(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, topic, 1)
    with started(bootstrap, topic, session_timeout_ms=SESSION_MS) as feed:
        feed.hold(True)
        send(bootstrap, topic, VALUES)
        until = time.monotonic() + SESSION_MS / 1000 + 0.5
        while time.monotonic() < until:
            assert feed.poll(0.2) == NOTHING
        feed.hold(False)
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 10)) == VALUES


@pytest.mark.kafka
def test_a_partition_that_comes_while_the_feed_is_held_waits_until_it_is_let_go(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    with closing(KafkaFeed(bootstrap, topic, topic)) as feed:
        feed.hold(True)
        while not feed.poll(0.2).assigned:
            pass
        feed.start(0, 4)
        assert feed.poll(0.5) == NOTHING
        assert made[0].paused() == {TopicPartition(topic, 0)}
        feed.hold(False)
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 6)) == VALUES[4:]


@pytest.mark.kafka
def test_holding_a_partition_that_a_rebalance_just_took_away_raises_nothing(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    with started(bootstrap, topic) as feed:
        private_names.subscription(made[0]).assign_from_subscribed([])  # as the I/O thread does before the next poll tells it
        feed.hold(True)
        feed.hold(False)
        assert feed.exhausted is False
        assert feed.poll(0) == NOTHING


@pytest.mark.kafka
def test_a_client_that_no_longer_reads_is_told(bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    with started(bootstrap, topic, stall_s=0.5) as feed:
        for _ in range(8):  # nothing to read is no stall
            feed.poll(0.2)
        send(bootstrap, topic, VALUES)
        poll_until(feed, lambda slices: len(messages(slices)) == 10)
        feed.hold(True)
        feed.poll(1)  # longer than a fetch that is under way
        send(bootstrap, topic, VALUES)
        for _ in range(8):  # nor is being held
            assert feed.poll(0.2) == NOTHING
        feed.hold(False)
        made[0].pause(TopicPartition(topic, 0))  # it fetches no more, and the feed knows nothing of it
        with pytest.raises(BrokerError, match=r"nothing came for 0\.5 s, although offset 10 is next and the broker ends at 20"):
            for _ in range(100):
                assert feed.poll(0.1) == NOTHING


@pytest.mark.kafka
def test_a_topic_made_again_longer_is_noticed_before_its_first_message_is_given_out(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody polls meanwhile, and the metadata that the client holds are still the old ones: it reads on in silence."""
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES[:3])
    with started(bootstrap, topic) as feed:
        poll_until(feed, lambda slices: len(messages(slices)) == 3)
        name, cluster = feed.name, private_names.cluster(made[0])
        cluster.config["metadata_max_age_ms"] = 10**9
        feed.hold(True)
        feed.poll(1)  # so that no fetch is under way, which would be told that the topic is gone
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
            admin.delete_topics([topic])
        create_topic(bootstrap, topic, 1)
        send(bootstrap, topic, VALUES)
        stale = cluster.topic_id(topic)
        feed.hold(False)
        private_names.subscription(made[0]).seek(TopicPartition(topic, 0), OffsetAndMetadata(3, "", -1))
        with pytest.raises(DataLostError, match=f"{name} was deleted and made again as {topic}@"):
            while True:
                assert feed.poll(0.2).slices == []
        assert (feed.name, cluster.topic_id(topic)) == (name, stale)


@pytest.mark.kafka
def test_what_was_read_waits_while_no_broker_says_of_which_topic_it_is(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    with started(bootstrap, topic, max_records=4) as feed:
        asked: list[object] = []

        def silent(*question: object) -> None:
            asked.append(question)
            raise KafkaTimeoutError

        with monkeypatch.context() as patched:
            patched.setattr(Incarnation, "confirm", silent)
            while len(asked) < 5:
                assert feed.poll(0.1) == NOTHING
            assert not feed.exhausted
            assert made[0].position(TopicPartition(topic, 0)) == 4  # no more is read meanwhile
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 10)) == VALUES
        assert feed.exhausted


@pytest.mark.kafka
def test_partitions_that_are_taken_away_while_what_was_read_waits_leave_nothing_paused(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is silent while the only partition is lost; when it comes back, it is read on."""
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    with started(bootstrap, topic, max_records=4) as feed:
        with monkeypatch.context() as patched:
            patched.setattr(Incarnation, "confirm", lambda *question: raising(KafkaTimeoutError())(0))
            while not made[0].paused():
                assert feed.poll(0.1) == NOTHING
            made[0].listener.on_partitions_revoked([TopicPartition(topic, 0)])  # as the I/O thread tells it
            made[0].listener.on_partitions_assigned([TopicPartition(topic, 0)])
            assert feed.poll(0.1) == Polled([0], [0], [])
        feed.start(0, 2)
        assert made[0].paused() == set()
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 8)) == VALUES[2:]


@pytest.mark.kafka
def test_an_open_transaction_is_where_reading_ends_and_is_told(
    bootstrap: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of what others sent meanwhile, outside of it: all is read once it has ended."""
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES[:2])
    with closing(KafkaProducer(bootstrap_servers=bootstrap, transactional_id=topic)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, value=VALUES[2], key=b"7").get(30)
        with started(bootstrap, topic, stall_s=0.3) as feed:
            assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 2)) == VALUES[:2]
            send(bootstrap, topic, VALUES[3:5])
            while not feed.exhausted or "nothing behind an open transaction can be read" not in capsys.readouterr().out:
                assert feed.poll(0.1) == NOTHING
            producer.commit_transaction()
            assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 3)) == VALUES[2:5]
            poll_until(feed, lambda slices: feed.exhausted)
            capsys.readouterr()
        assert "open transaction" not in capsys.readouterr().out
        producer.begin_transaction()
        producer.send(topic, value=VALUES[5], key=b"7").get(30)
        with started(bootstrap, topic, 6) as feed:
            poll_until(feed, lambda slices: feed.exhausted)
        assert "what lies behind an open transaction was not read" in capsys.readouterr().out
        producer.abort_transaction()


@pytest.mark.kafka
def test_errors_that_pass_are_passed_over_and_others_end_the_feed(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    with started(bootstrap, topic) as feed:
        for error in (NodeNotReadyError("1"), CorruptRecordError("from the broker itself")):
            with monkeypatch.context() as patched:
                patched.setattr(made[0], "poll", raising(error))
                assert feed.poll(0.1) == NOTHING
        assert messages(poll_until(feed, lambda slices: len(messages(slices)) == 10)) == VALUES
        monkeypatch.setattr(made[0], "poll", raising(GroupAuthorizationFailedError("group")))
        with pytest.raises(BrokerError, match="GroupAuthorizationFailedError"):
            feed.poll(0.1)


@pytest.mark.kafka
def test_a_worker_whose_instance_another_one_took_is_told(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, VALUES)
    with (
        started(bootstrap, topic, instance="a") as first,
        started(bootstrap, topic, instance="a"),
        pytest.raises(BrokerError, match=r"another worker reads .* under the same --instance"),
    ):
        while True:
            first.poll(0.2)
            first.commit({0: 1})


def raising(error: Exception) -> Callable[..., None]:
    def poll(timeout_ms: int) -> None:
        raise error

    return poll
