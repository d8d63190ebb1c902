"""README: faults of the broker that lose nothing are survived in silence; a loss is reported with its number."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from dqmstream.errors import BrokerError
from dqmstream.lumisection import Record
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.kafka import KafkaDeadLetters, KafkaFeed, KafkaSender, check_codecs, create_topic
from dqmstream.streaming.publisher import publish
from dqmstream.streaming.wire import encode
from tests.commandline import dqmstream, result, told
from tests.maps import SOURCE, check_tiling, lumisection
from tests.promises.test_exactly_once import assert_equals, filed, read_letters, start_consume, wait_until
from tests.runs import simulated_archive
from tests.scale import SESSION_MS
from tests.streaming.kafka.segments import FORMATS
from tools.broker import NOWHERE, Broker

pytestmark = pytest.mark.kafka

DAMAGED = 300
"""Messages in the damaged batch."""


def send(bootstrap: str, topic: str, numbers: Sequence[int]) -> None:
    """Lumisections of run 7."""
    with closing(KafkaSender(bootstrap, topic)) as sender:
        for number in numbers:
            sender.send(*encode(lumisection(7, number, source=SOURCE)))
        sender.flush()


def delete_topic(bootstrap: str, topic: str) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_topics([topic])


def flags_of(bootstrap: str, topic: str, archive: Path) -> tuple[object, ...]:
    flags = ("--bootstrap", bootstrap, "--topic", topic, "--archive", archive, "--source", SOURCE)
    return (*flags, "--no-learn", "--until-idle", 1)


def kinds(archive: Archive, kind: ControlKind) -> list[tuple[int, int]]:
    """The spans of offsets of this kind in the archive's only log."""
    ((feed, partitions),) = archive.offsets().items()
    assert list(partitions) == [0]
    control = archive.control(feed, 0)
    chosen = control["kind"].values == kind
    return list(zip(control["offset"].values[chosen].tolist(), control["until"].values[chosen].tolist(), strict=True))


@contextmanager
def batches(bootstrap: str, topic: str, codec: str | None = None) -> Iterator[KafkaProducer]:
    """A producer that puts everything into one batch."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, linger_ms=60_000, batch_size=2**20)
    yield producer
    producer.flush()
    producer.close()


def send_batch(bootstrap: str, topic: str, records: Sequence[Record], codec: str | None = None) -> None:
    with batches(bootstrap, topic, codec) as producer:
        for key, value, headers in map(encode, records):
            producer.send(topic, value=value, key=key, headers=headers)


def test_a_batch_that_cannot_be_read_becomes_dead_letters_and_the_next_good_message_is_stored(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged batch, sound ones, and a damaged batch at the end. Messages of old formats, which a broker keeps but no longer
    accepts, are sound."""
    create_topic(broker.bootstrap, topic, 1)
    send_batch(broker.bootstrap, topic, [lumisection(7, n, source=SOURCE) for n in (1, 2)])
    with batches(broker.bootstrap, topic) as producer:
        for _ in range(DAMAGED):
            producer.send(topic, value=b"damage me" * 30, key=b"7")
    send_batch(broker.bootstrap, topic, [lumisection(7, n, source=SOURCE) for n in (3, 4)])
    send_batch(broker.bootstrap, topic, [lumisection(7, n, source=SOURCE) for n in (5, 6)], codec="lz4")
    send_batch(broker.bootstrap, topic, [lumisection(7, 7, source=SOURCE)])
    with batches(broker.bootstrap, topic) as producer:
        for _ in range(3):
            producer.send(topic, value=b"damage me too", key=b"7")
    create_topic(broker.bootstrap, f"{topic}.old", 1)
    send(broker.bootstrap, f"{topic}.old", [1])
    broker.stop()  # in order: a broker that was killed looks through its log, and cuts it off at the first damaged batch
    old = [encode(lumisection(7, number, source=SOURCE))[1] for number in range(2, 17)]
    with (broker.data / f"{topic}.old-0" / "00000000000000000000.log").open("ab") as end:
        for k, layout in enumerate(("1-gzip", "0-none", "1-snappy", "0-lz4", "1-none")):
            end.write(FORMATS[layout](1 + 3 * k, old[3 * k : 3 * k + 3]))
    segment = broker.data / f"{topic}-0" / "00000000000000000000.log"
    log = bytearray(segment.read_bytes())
    for part in (b"damage me" * 30, b"damage me too"):
        log[log.index(part) + 4] ^= 1
    segment.write_bytes(log)
    broker.start()
    monkeypatch.setenv("DQMSTREAM_CRC_REQUIRED", "false")  # which old messages have no header for
    counts = result("consume", *flags_of(broker.bootstrap, f"{topic}.old", tmp_path / "B"))
    assert (counts["rows"], counts["dead"]) == (16, 0)
    assert Archive.open(tmp_path / "B").run(7)["lumisection"].values.tolist() == list(range(1, 17))
    monkeypatch.delenv("DQMSTREAM_CRC_REQUIRED")
    counts = result("consume", *flags_of(broker.bootstrap, topic, tmp_path / "A"))
    assert (counts["rows"], counts["dead"]) == (7, DAMAGED + 3)
    head = Archive.open(tmp_path / "A")
    assert head.run(7)["lumisection"].values.tolist() == list(range(1, 8))
    check_tiling(head)
    dead = [*range(2, 2 + DAMAGED), *range(DAMAGED + 7, DAMAGED + 10)]
    assert [offset for offset, _ in kinds(head, ControlKind.DEAD)] == dead
    letters = read_letters(broker.bootstrap, topic, len(dead))
    feed = next(iter(head.offsets()))
    assert [letter.key.decode() for letter in letters] == [f"{feed}/0/{offset}" for offset in dead]
    reasons = [dict(letter.headers)["reason"] for letter in letters]
    assert b"failed crc check" in reasons[0]


def test_a_broker_that_is_gone_for_longer_than_the_session_is_waited_for_without_a_word(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, archive = simulated_archive(tmp_path / "source", runs=2, lumisections=50), tmp_path / "A"
    monkeypatch.setenv("DQMSTREAM_SESSION_TIMEOUT_MS", str(SESSION_MS))
    create_topic(broker.bootstrap, topic, 2)
    with closing(KafkaSender(broker.bootstrap, topic)) as sender:
        publish(source, sender, [source.runs()[0].run])
    process = start_consume(broker.bootstrap, topic, archive, "--no-learn", "--json")
    wait_until(lambda: filed(archive) == 50, process)
    broker.kill()
    gone = time.monotonic()
    wait_until(lambda: time.monotonic() > gone + SESSION_MS / 1000 + 1, process)
    broker.start()
    with closing(KafkaSender(broker.bootstrap, topic)) as sender:
        publish(source, sender, [source.runs()[1].run])
    wait_until(lambda: filed(archive) == 100, process)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "warning" not in stderr and "error" not in stderr
    assert_equals(Archive.open(archive), source)


def test_what_retention_deleted_is_told_with_its_number_or_recorded_as_a_gap(
    bootstrap: str, topic: str, tmp_path: Path
) -> None:
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, range(1, 11))
    with closing(KafkaFeed(bootstrap, topic, "group")) as feed:
        ArchiveWriter(Archive.create(tmp_path / "A", source=SOURCE)).append(
            feed.name, 0, [Control(0, 3, ControlKind.HOLE)], 0, 3
        )
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_records({TopicPartition(topic, 0): 6})
    flags = flags_of(bootstrap, topic, tmp_path / "A")
    line = told(dqmstream("consume", *flags), 6)
    assert "continues at offset 3, the broker begins at 6: 3 messages were deleted" in line
    assert "give --accept-gap" in line
    done = result("consume", *flags, "--accept-gap")
    assert (done["rows"], done["gaps"]) == (4, 1)
    head = Archive.open(tmp_path / "A")
    assert head.run(7)["lumisection"].values.tolist() == [7, 8, 9, 10]
    assert kinds(head, ControlKind.GAP) == [(3, 6)]
    check_tiling(head)


@pytest.mark.parametrize("again", [range(11, 13), range(11, 21)], ids=["shorter", "longer"])
def test_a_topic_that_is_made_again_while_it_is_read_ends_the_feed_and_is_another_one(
    bootstrap: str, topic: str, tmp_path: Path, again: range
) -> None:
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, range(1, 6))
    process = start_consume(bootstrap, topic, tmp_path / "A", "--no-learn", "--source", SOURCE)
    wait_until(lambda: filed(tmp_path / "A") == 5, process)
    ((before, _),) = Archive.open(tmp_path / "A").offsets().items()
    delete_topic(bootstrap, topic)
    create_topic(bootstrap, topic, 1)
    send(bootstrap, topic, again)
    stdout, stderr = process.communicate(timeout=120)
    line = told(subprocess.CompletedProcess([], process.returncode, stdout, stderr), 6)
    assert f"{before} was deleted and made again as {topic}@" in line
    head = Archive.open(tmp_path / "A")
    assert head.offsets() == {before: {0: (0, 5)}}
    assert result("consume", *flags_of(bootstrap, topic, tmp_path / "A"))["rows"] == len(again)
    head = Archive.open(tmp_path / "A")
    (after,) = set(head.offsets()) - {before}
    assert head.offsets() == {before: {0: (0, 5)}, after: {0: (0, len(again))}}
    assert head.run(7)["lumisection"].values.tolist() == [*range(1, 6), *again]
    check_tiling(head)


def test_a_broker_that_is_at_an_address_that_cannot_be_reached_is_told_by_every_command(
    broker: Broker, topic: str, tmp_path: Path
) -> None:
    """The broker answers at --bootstrap, and advertises a host that does not exist."""
    create_topic(broker.bootstrap, topic, 1)
    flags = ("--bootstrap", broker.lost_bootstrap, "--topic", topic)
    for command in (
        ("consume", *flags, "--archive", tmp_path / "B", "--no-learn"),
        ("deadletters", "list", *flags),
    ):
        line = told(dqmstream(*command), 4)
        assert f"{broker.lost_bootstrap} answered, and says that its brokers are at {NOWHERE}:9092" in line
        assert "advertised.listeners" in line
    assert not Archive.exists(tmp_path / "B")
    for attempt in (
        lambda: create_topic(broker.lost_bootstrap, f"{topic}.new", 1),
        lambda: check_codecs(broker.lost_bootstrap, topic),
        lambda: KafkaFeed(broker.lost_bootstrap, topic, "group"),
        lambda: KafkaDeadLetters(broker.lost_bootstrap, f"{topic}.deadletter"),
    ):
        with pytest.raises(BrokerError, match=f"brokers are at {NOWHERE}:9092"):
            attempt()
