"""Dead letters on a broker: what is written of a message, whole or cut, is read and sent again."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer

from dqmstream.errors import BrokerError, InputError
from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.kafka import KafkaDeadLetters, KafkaSender, create_topic
from dqmstream.streaming.kafka.dead_letter_record import HEAD, NOTHING, WHOLE, StoredLetter, letter_headers, parse_letter
from dqmstream.streaming.kafka.dead_letter_topic import find_letter, list_letters, read_letters
from dqmstream.streaming.kafka.republishing import Republished, republish
from dqmstream.streaming.kafka.topics import topic_settings
from dqmstream.streaming.message import Message
from tests.hostile import NAME

HEADERS = st.lists(st.tuples(st.text(max_size=300), st.none() | st.binary(max_size=300)), max_size=70)
MESSAGES = st.builds(
    Message,
    partition=st.integers(0, 99),
    offset=st.integers(0, 2**62),
    key=st.none() | st.binary(max_size=300),
    value=st.none() | st.binary(max_size=100),
    headers=HEADERS,
    timestamp_ms=st.integers(0, 2**62),
)


def letter(offset: int, value: bytes | None = b"v", **flags: object) -> DeadLetter:
    message = Message(0, offset, b"7", value, [("crc32c", b"00000000")], 1_650_000_000_000 + offset)
    return DeadLetter("hcal@c.t", "hcal", replace(message, **flags), "no good")  # type: ignore[arg-type]


def send_nothing(done: int, total: int) -> None:
    """Progress that shows nothing."""


@settings(deadline=None)
@given(message=MESSAGES, reason=st.text(max_size=300))
def test_a_letter_tells_the_message_as_it_was_or_says_what_is_cut(message: Message, reason: str) -> None:
    dead = DeadLetter("hcal@c.t", "hcal", message, reason)
    for extent in (WHOLE, HEAD, NOTHING):
        value = message.value if message.value is None else message.value[: extent.value]
        got = parse_letter(dead.key.encode(), value, letter_headers(dead, extent))
        assert got is not None
        assert (got.key, got.topic, got.partition, got.offset) == (dead.key, "hcal", message.partition, message.offset)
        assert (got.timestamp_ms, got.reason) == (message.timestamp_ms, reason)
        assert got.size == message.size
        sent = tuple((name, content or b"") for name, content in message.headers)
        same = {"value": got.value == message.value, "key": got.original_key == message.key, "headers": got.headers == sent}
        assert {part for part, is_same in same.items() if not is_same} == set(got.cut)


def test_a_message_that_the_client_could_not_read_is_not_taken_for_an_empty_one() -> None:
    dead = letter(3, None, key=None, headers=(), error="the batch is damaged")
    got = parse_letter(dead.key.encode(), None, letter_headers(dead, WHOLE))
    assert got is not None and got.cut == ("value",)
    assert "hcal/0/3" in got.obstacle


def test_a_header_named_key_is_not_taken_for_the_key() -> None:
    dead = letter(3, key=None, headers=[("key", b"x"), ("topic", b"y"), ("topic", b"z")])
    got = parse_letter(dead.key.encode(), b"v", letter_headers(dead, WHOLE))
    assert got is not None
    assert (got.original_key, got.topic, got.headers) == (None, "hcal", (("key", b"x"), ("topic", b"y"), ("topic", b"z")))


@pytest.mark.parametrize("headers", [[], [("topic", b"t")], [("topic", b"\xff"), ("partition", b"x"), ("offset", b"")]])
def test_what_is_no_letter_is_told_apart(headers: list[tuple[str, bytes]]) -> None:
    assert parse_letter(b"hcal/0/1", b"v", headers) is None


@pytest.mark.kafka
def test_letters_are_read_up_to_the_end_and_each_is_listed_once(bootstrap: str, topic: str) -> None:
    letters = KafkaDeadLetters(bootstrap, f"{topic}.deadletter")
    assert list(read_letters(bootstrap, f"{topic}.deadletter")) == []
    letters.put([letter(k) for k in range(300)])
    letters.put([letter(k) for k in range(290, 310)])  # as after a crash
    foreign = KafkaSender(bootstrap, f"{topic}.deadletter")
    foreign.send(b"hcal/0/1", b"something else", [])
    foreign.close()
    assert len(list(read_letters(bootstrap, f"{topic}.deadletter"))) == 320
    assert [found.offset for found in list_letters(bootstrap, f"{topic}.deadletter")] == list(range(310))
    reading = read_letters(bootstrap, f"{topic}.deadletter")
    next(reading)
    letters.put([letter(310)])
    assert len(list(reading)) == 319  # what comes meanwhile is for the next time
    letters.close()


@pytest.mark.kafka
def test_a_missing_topic_and_an_unknown_key_are_told(bootstrap: str, topic: str) -> None:
    with pytest.raises(BrokerError, match=f"has no topic {topic}"):
        list_letters(bootstrap, topic)
    KafkaDeadLetters(bootstrap, topic).close()
    with pytest.raises(InputError, match="holds no letter hcal/0/1"):
        find_letter(bootstrap, topic, "hcal/0/1")
    with pytest.raises(InputError, match="holds no letter hcal/0/1"):
        republish(bootstrap, topic, ["hcal/0/1"], None, send_nothing)


@pytest.mark.kafka
def test_a_topic_with_little_room_still_gets_where_and_why(bootstrap: str, topic: str) -> None:
    """The whole message, then its head, then only its place and its reason."""
    create_topic(bootstrap, topic, 1, {"max.message.bytes": "3000"})
    letters = KafkaDeadLetters(bootstrap, topic)
    noise = np.random.default_rng(0).bytes(9000)  # which does not compress
    many = [(f"name-{k}", noise[100 * k :][:100]) for k in range(70)]
    letters.put([letter(0), letter(1, b"v", headers=many), letter(2, b"v", headers=[("a", noise)]), letter(3)])
    letters.close()
    found = {one.offset: one for one in list_letters(bootstrap, topic)}
    assert {offset: one.cut for offset, one in found.items()} == {0: (), 1: ("value", "key", "headers"), 2: ("headers",), 3: ()}
    assert {one.reason for one in found.values()} == {"no good"}
    assert found[1].size == 1
    assert find_letter(bootstrap, topic, found[2].key).headers == (("a", noise[:256]),)


def sent_to(bootstrap: str, topic: str, count: int) -> list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]:
    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=5000)
    records = [next(consumer) for _ in range(count)]
    assert consumer.highwater(next(iter(consumer.assignment()))) == count
    consumer.close()
    return [(record.key, record.value, tuple(record.headers)) for record in records]


@pytest.mark.kafka
def test_what_is_sent_back_is_what_came(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, f"{topic}.other", 1)
    letters = KafkaDeadLetters(bootstrap, topic)
    dead = [
        letter(0, b"\x00\xff", headers=[("a", b"1"), ("a", b"2"), ("key", b"")]),
        letter(1, b"", key=None, headers=[]),
        letter(2, None),
        letter(3, None, key=None),
        letter(4, None, error="unreadable"),
    ]
    letters.put(dead)
    letters.put(dead)
    letters.close()
    told: list[tuple[int, int]] = []
    done = republish(bootstrap, topic, None, f"{topic}.other", lambda sent, total: told.append((sent, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert done.sent == {f"{topic}.other": 3}
    assert [(one.offset, one.obstacle[:15]) for one in done.refused] == [(3, "the message has"), (4, "value not whole")]
    assert sent_to(bootstrap, f"{topic}.other", 3) == [
        (b"7", b"\x00\xff", (("a", b"1"), ("a", b"2"), ("key", b""))),
        (None, b"", ()),
        (b"7", None, (("crc32c", b"00000000"),)),
    ]
    one = republish(bootstrap, topic, [dead[2].key], f"{topic}.other", send_nothing)
    assert one == Republished({f"{topic}.other": 1}, [])
    with pytest.raises(BrokerError, match="has no topic hcal"):
        republish(bootstrap, topic, None, None, send_nothing)
    assert len(list_letters(bootstrap, topic)) == 5  # nothing is ever taken away


def test_a_letter_is_one_of_the_broker_s_whatever_its_order() -> None:
    got = parse_letter(
        b"k", None, [("reason", b"\xff"), ("offset", b"1"), ("partition", b"0"), ("topic", b"t"), ("timestamp_ms", b"0")]
    )
    assert isinstance(got, StoredLetter) and got.reason == "\ufffd"


@pytest.mark.kafka
def test_letters_are_kept_for_ever_and_a_topic_that_deletes_them_is_told(
    bootstrap: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    KafkaDeadLetters(bootstrap, topic).close()
    found = topic_settings(bootstrap, topic)
    assert [found[name] for name in ("cleanup.policy", "retention.ms", "retention.bytes")] == ["delete", "-1", "-1"]
    KafkaDeadLetters(bootstrap, topic).close()
    assert "deleted" not in capsys.readouterr().out
    create_topic(bootstrap, f"{topic}.week", 1)
    KafkaDeadLetters(bootstrap, f"{topic}.week").close()
    told = capsys.readouterr().out
    assert "dead letters are deleted by the broker" in told and "retention.ms=604800000" in told
    assert topic_settings(bootstrap, f"{topic}.week")["retention.ms"] == "604800000"  # another's topic is left as it is


@pytest.mark.kafka
def test_a_stranger_s_record_among_the_letters_hides_none(bootstrap: str, topic: str) -> None:
    """Even if a header's name is not UTF-8, at which the client's own reader gives up the batch."""
    letters = KafkaDeadLetters(bootstrap, topic)
    for offset in (1, 2):
        letters.put([DeadLetter("hcal@x", "hcal", Message(0, offset, None, b"v"), "why")])
        with closing(KafkaProducer(bootstrap_servers=bootstrap)) as stranger:
            stranger.send(topic, value=b"v", headers=[(NAME, b"1")]).get(30)
    letters.close()
    assert [letter.offset for letter in list_letters(bootstrap, topic)] == [1, 2]
