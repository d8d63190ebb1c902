"""The Kafka feed: gaps, a held feed, a topic made again, open transactions, and a client that no longer reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError, GroupAuthorizationFailedError, KafkaTimeoutError, NodeNotReadyError
from kafka.structs import OffsetAndMetadata

from dqmstream.errors import BrokerError, DataLostError
from dqmstream.streaming.kafka import KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.kafka.workarounds import private_names
from dqmstream.streaming.kafka.workarounds.recreated_topics import Incarnation
from dqmstream.streaming.message import Polled, Slice
from tests.scale import SESSION_MS
from tests.streaming.kafka.clients import recorded


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
    """Nobody polls meanwhile, and the client's metadata are still the old ones: it reads on in silence."""
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
    """Also for messages that others sent meanwhile: all are read once it has ended."""
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
