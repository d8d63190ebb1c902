"""README: every lumisection that the broker acknowledged is in the archive once, whatever is killed."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from dqmstream.errors import UNFILED, BrokerError, DataLostError
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control, ControlKind
from dqmstream.storage.locks import exclusive
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import MAX_LETTER_BYTES, KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.publisher import publish
from dqmstream.streaming.wire import encode
from tests.cli.test_cli import result as fresh_result
from tests.commandline import Command, dqmstream, end_waits_early, result, told
from tests.maps import SOURCE, as_sent, check_tiling, lumisection
from tests.runs import simulated_archive
from tests.scale import SESSION_MS, scaled
from tests.streaming.kafka.clients import recorded
from tools.broker import Broker

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("source"), runs=3)


@pytest.fixture
def published(source: Archive, bootstrap: str, topic: str) -> str:
    """A topic of two partitions with three runs on it."""
    create_topic(bootstrap, topic, 2)
    sender = KafkaSender(bootstrap, topic)
    publish(source, sender, [summary.run for summary in source.runs()])
    sender.close()
    return topic


def start_consume(bootstrap: str, topic: str, archive: Path, *flags: str, before: Callable[[], None] | None = None) -> Command:
    return Command("consume", "--bootstrap", bootstrap, "--topic", topic, "--archive", archive, *flags, before=before)


def wait_until(condition: Callable[[], Any], process: Command) -> None:
    """Wait until the condition holds; the process must not end before (the test's timeout bounds the wait)."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # looking costs a processor, which the process needs to get there


def threads_that_wait_for_a_lock(pid: int) -> int:
    """How many threads of the process wait for a lock that another holds (Linux)."""
    return sum("->" in line and str(pid) in line.split() for line in Path("/proc/locks").read_text().splitlines())


def filed(archive: Path) -> int:
    return sum(run.rows for run in Archive.open(archive).runs()) if Archive.exists(archive) else 0


def assert_equals(archive: Archive, source: Archive) -> None:
    """Nothing is lost or repeated, and every value is as it was sent."""
    runs = source.runs()
    assert {s.run: (s.lumisections, s.rows, s.duplicates) for s in archive.runs()} == {
        s.run: (s.lumisections, s.lumisections, 0) for s in runs
    }
    for summary in runs:
        assert as_sent(archive, summary.run).equals(as_sent(source, summary.run))
    check_tiling(archive)


def read_letters(bootstrap: str, topic: str, count: int) -> list[Any]:
    """The first `count` dead letters of a topic."""
    consumer = KafkaConsumer(
        f"{topic}.deadletter", bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=5000
    )
    letters = list(islice(consumer, count))
    consumer.close()
    return letters


def test_what_was_acknowledged_is_in_the_archive_once(source: Archive, bootstrap: str, published: str, tmp_path: Path) -> None:
    flags = ("--bootstrap", bootstrap, "--topic", published, "--archive", tmp_path / "A", "--no-learn", "--until-idle", 1)
    assert fresh_result("consume", *flags)["rows"] == 600
    assert_equals(Archive.open(tmp_path / "A"), source)
    again = result("consume", *flags)
    assert (again["messages"], again["commits"]) == (0, 0)
    assert_equals(Archive.open(tmp_path / "A"), source)


def test_a_kill_loses_nothing_and_repeats_nothing(
    source: Archive, bootstrap: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "A"
    (tmp_path / "dqm.toml").write_text("max_rows = 5\nflush_s = 0.01\n")
    monkeypatch.setenv("DQMSTREAM_CONFIG", str(tmp_path / "dqm.toml"))
    kills, moved = scaled(10, 30), 0
    for _ in range(kills):
        floor = filed(archive)
        moved += floor < 600
        process = start_consume(bootstrap, published, archive, "--no-learn", "--instance", "worker-1")
        wait_until(lambda floor=floor: filed(archive) > floor or floor == 600, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        check_tiling(Archive.open(archive))
    print(f"\n{kills} kills of `dqmstream consume`, {moved} while it filed")
    assert moved >= 5
    result(
        "consume", "--bootstrap", bootstrap, "--topic", published, "--archive", archive, "--no-learn",
        "--instance", "worker-1", "--until-idle", 1,
    )  # fmt: skip
    assert_equals(Archive.open(archive), source)


def test_until_idle_does_not_take_the_wait_for_a_dead_worker_for_silence(
    source: Archive, bootstrap: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group gives a killed worker's partitions away only when its session has timed out, long after --until-idle."""
    monkeypatch.setenv("DQMSTREAM_SESSION_TIMEOUT_MS", str(SESSION_MS))
    monkeypatch.setenv("DQMSTREAM_MAX_ROWS", "20")
    archive = tmp_path / "A"
    process = start_consume(bootstrap, published, archive, "--no-learn")
    wait_until(lambda: filed(archive) > 0, process)
    process.kill()
    process.communicate()
    result("consume", "--bootstrap", bootstrap, "--topic", published, "--archive", archive, "--no-learn", "--until-idle", 0.5)
    assert_equals(Archive.open(archive), source)


def test_sigterm_drains_and_ends(source: Archive, bootstrap: str, published: str, tmp_path: Path) -> None:
    archive = tmp_path / "A"
    process = start_consume(bootstrap, published, archive, "--strategy", "gain_map", "--json")
    wait_until(lambda: filed(archive) == 600, process)
    process.terminate()
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["rows"] == 600
    assert_equals(Archive.open(archive), source)


def test_a_disk_that_hangs_is_waited_for_within_a_bound_and_a_second_sigterm_ends_at_once(
    source: Archive, bootstrap: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk seems to hang, since the test holds the archive's lock; the next start files the rest."""
    monkeypatch.setenv("DQMSTREAM_MAX_ROWS", "20")
    archive = Archive.create(tmp_path / "A").path
    for drain_s in (1, 3600):
        monkeypatch.setenv("DQMSTREAM_DRAIN_S", str(drain_s))
        with exclusive(archive):
            flags = ("--no-learn", "--json", "--group", f"group-{drain_s}")
            process = start_consume(bootstrap, published, archive, *flags, before=end_waits_early)
            # The one that files, and the one that drops old snapshots, which waits from the start.
            wait_until(lambda process=process: threads_that_wait_for_a_lock(process.pid) == 2, process)
            process.terminate()
            while drain_s == 3600 and process.poll() is None:
                process.terminate()  # again and again: two that come too close are one
            stdout, stderr = process.communicate(timeout=120)
        if drain_s == 3600:
            assert process.returncode == -signal.SIGTERM, stderr
        else:
            assert process.returncode == UNFILED, stderr
            done = json.loads(stdout.splitlines()[-1])
            assert (done["waiting"] > 0, done["exit_code"], done["snapshot"]) == (True, 9, None)
            assert "will be read again" in stderr
        assert filed(archive) == 0
    result("consume", "--bootstrap", bootstrap, "--topic", published, "--archive", archive, "--no-learn", "--until-idle", 1)
    assert_equals(Archive.open(archive), source)


def test_what_was_filed_is_also_told_to_kafka(bootstrap: str, published: str, tmp_path: Path) -> None:
    """For monitors of lag; the archive's own offsets say where to read on."""
    done = result(
        "consume", "--bootstrap", bootstrap, "--topic", published, "--archive", tmp_path / "A", "--no-learn", "--until-idle", 1
    )
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=done["group"], enable_auto_commit=False)
    (offsets,) = done["next_offsets"].values()  # type: ignore[attr-defined]
    assert {str(p): consumer.committed(TopicPartition(published, p)) for p in (0, 1)} == offsets
    consumer.close()


def test_a_hostile_message_is_kept_with_its_reason_and_the_next_good_one_is_stored(
    bootstrap: str, topic: str, tmp_path: Path
) -> None:
    create_topic(bootstrap, topic, 1)
    sender = KafkaSender(bootstrap, topic)
    key, value, headers = encode(lumisection(7, 1))
    sender.send(key, value, headers)
    sender.send(b"7", b"\x00garbage", [("crc32c", b"00000000")])
    sender.send(b"7", None, [])
    sender.send(*encode(lumisection(7, 2)))
    sender.close()
    places = ("--bootstrap", bootstrap, "--topic", topic, "--archive", tmp_path / "A", "--source", SOURCE)
    done = result("consume", *places, "--no-learn", "--until-idle", 1)
    assert (done["rows"], done["dead"]) == (2, 2)
    head = Archive.open(tmp_path / "A")
    assert head.run(7)["lumisection"].values.tolist() == [1, 2]
    check_tiling(head)
    letters = read_letters(bootstrap, topic, 2)
    feed = next(iter(head.offsets()))
    assert [letter.key.decode() for letter in letters] == [f"{feed}/0/1", f"{feed}/0/2"]
    assert letters[0].value == b"\x00garbage"
    told_by = dict(letters[0].headers)
    assert (told_by["topic"], told_by["offset"]) == (topic.encode(), b"1")
    assert told_by["reason"].startswith(b"header crc32c is")
    assert int(told_by["timestamp_ms"]) > 0


def test_a_broker_that_is_killed_and_restarted_loses_nothing(
    source: Archive, broker: Broker, topic: str, tmp_path: Path
) -> None:
    archive = tmp_path / "A"
    create_topic(broker.bootstrap, topic, 1)
    runs = [summary.run for summary in source.runs()]
    sender = KafkaSender(broker.bootstrap, topic)
    publish(source, sender, runs[:1])
    process = start_consume(broker.bootstrap, topic, archive, "--no-learn", "--json")
    wait_until(lambda: filed(archive) == 200, process)
    broker.kill()
    broker.start()
    publish(source, sender, runs[1:])
    sender.close()
    wait_until(lambda: filed(archive) == 600, process)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert_equals(Archive.open(archive), source)


def test_an_offset_that_the_broker_does_not_have_is_told_loudly(bootstrap: str, topic: str, tmp_path: Path) -> None:
    create_topic(bootstrap, topic, 1)
    feed = KafkaFeed(bootstrap, topic, "group")
    name = feed.name
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    ArchiveWriter(archive).append(name, 0, [Control(0, 9, ControlKind.HOLE)], 0, 9)
    while not (assigned := feed.poll(0.2).assigned):
        pass
    with pytest.raises(DataLostError, match="continues at offset 9, the broker ends at 0"):
        feed.start(assigned[0], archive.refresh().next_offset(name, 0))
    feed.close()
    done = dqmstream("consume", "--bootstrap", bootstrap, "--topic", topic, "--archive", archive.path, "--no-learn")
    assert "the broker lost what it had acknowledged" in told(done, 6)


def test_messages_deleted_before_they_were_read_are_told_with_their_number(
    bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention passes the reader after it has started."""
    made = recorded(monkeypatch)
    create_topic(bootstrap, topic, 1)
    sender = KafkaSender(bootstrap, topic)
    for number in range(1, 11):
        sender.send(*encode(lumisection(7, number)))
    sender.close()
    feed = KafkaFeed(bootstrap, topic, "group")
    while not (assigned := feed.poll(0.2).assigned):
        pass
    feed.start(assigned[0], 2)
    made[0].pause(TopicPartition(topic, 0))
    made[0].seek(TopicPartition(topic, 0), 2)  # what was fetched ahead is dropped
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.delete_records({TopicPartition(topic, 0): 6})
    admin.close()
    made[0].resume(TopicPartition(topic, 0))
    with pytest.raises(DataLostError, match="continues at offset 2, the broker begins at 6: 4 messages were deleted"):
        for _ in range(50):
            feed.poll(0.2)
    feed.close()


def test_a_broker_that_is_away_at_the_advisory_commit_stops_nothing(broker: Broker, topic: str, tmp_path: Path) -> None:
    create_topic(broker.bootstrap, topic, 1)
    sender = KafkaSender(broker.bootstrap, topic)
    sender.send(*encode(lumisection(7, 1)))
    sender.close()
    feed = KafkaFeed(broker.bootstrap, topic, "group")
    writer = ArchiveWriter(Archive.create(tmp_path / "A", source=SOURCE))
    loop = Ingest(feed, writer, FolderDeadLetters(tmp_path / "L"), topic=topic, flush_s=3600)
    while loop.counts.messages == 0:
        loop.step(0.2)
    broker.kill()
    loop.drain()
    assert loop.counts.rows == 1
    broker.start()
    sender = KafkaSender(broker.bootstrap, topic)
    sender.send(*encode(lumisection(7, 2)))
    sender.close()
    while loop.counts.messages == 1:
        loop.step(0.2)
    loop.drain()
    feed.close()
    assert Archive.open(tmp_path / "A").run(7)["lumisection"].values.tolist() == [1, 2]


def test_what_is_too_large_for_the_dead_letter_topic_is_cut_and_says_so(bootstrap: str, topic: str, tmp_path: Path) -> None:
    """A letter has headers on top of its message, for which a message of the greatest size leaves no room."""
    create_topic(bootstrap, topic, 1, {"max.message.bytes": str(MAX_LETTER_BYTES)})
    create_topic(bootstrap, f"{topic}.deadletter", 1)  # with the broker's own limit of about a megabyte
    sender = KafkaSender(bootstrap, topic)
    noise = np.random.default_rng(0).bytes(3_000_000)
    sender.send(b"7", noise, [("crc32c", b"x" * 50_000)])
    sender.send(*encode(lumisection(7, 1)))
    sender.close()
    flags = ("--bootstrap", bootstrap, "--topic", topic, "--archive", tmp_path / "A", "--source", SOURCE)
    done = result("consume", *flags, "--no-learn", "--until-idle", 1)
    assert (done["rows"], done["dead"]) == (1, 1)
    (letter,) = read_letters(bootstrap, topic, 1)
    headers = dict(letter.headers)
    assert letter.value == noise[: len(letter.value)] and 0 < len(letter.value) < 100_000
    assert (headers["truncated"], headers["size"]) == (b"true", b"3000000")
    assert headers["sha256"].decode() == hashlib.sha256(noise).hexdigest()
    assert len(headers["original.crc32c"]) == 256
    check_tiling(Archive.open(tmp_path / "A"))


def test_a_missing_topic_and_an_unreachable_broker_write_nothing(bootstrap: str, topic: str, tmp_path: Path) -> None:
    done = dqmstream("consume", "--bootstrap", bootstrap, "--topic", topic, "--archive", tmp_path / "A")
    assert f"has no topic {topic}" in told(done, 4)
    with pytest.raises(BrokerError, match=f"has no topic {topic}"):
        KafkaFeed(bootstrap, topic, "group")
    flags = ("--bootstrap", "127.0.0.1:1", "--topic", topic, "--archive", tmp_path / "A")
    done = dqmstream("consume", *flags, before=end_waits_early)
    assert "no Kafka broker answers at 127.0.0.1:1" in told(done, 4)
    assert not list(tmp_path.iterdir())


def test_a_topic_made_again_is_another_feed(bootstrap: str, topic: str, tmp_path: Path) -> None:
    places = ("--bootstrap", bootstrap, "--topic", topic, "--archive", tmp_path / "A", "--source", SOURCE)
    flags = (*places, "--no-learn", "--until-idle", 1)
    for numbers in (range(1, 4), range(4, 6)):
        create_topic(bootstrap, topic, 1)
        sender = KafkaSender(bootstrap, topic)
        for number in numbers:
            sender.send(*encode(lumisection(7, number, source=SOURCE)))
        sender.close()
        assert result("consume", *flags)["rows"] == len(numbers)
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        admin.delete_topics([topic])
        admin.close()
    head = Archive.open(tmp_path / "A")
    assert len(head.offsets()) == 2
    np.testing.assert_array_equal(head.run(7)["lumisection"], [1, 2, 3, 4, 5])
    check_tiling(head)
