"""Dead letters in a Kafka topic: written by ingest, read by people, sent back when what was wrong is mended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import structlog
from kafka import KafkaConsumer, TopicPartition

from dqmstream.errors import BrokerError, InputError
from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.kafka.connection import connect, guarded
from dqmstream.streaming.kafka.sender import MAX_REQUEST_BYTES, KafkaSender, TooLargeError
from dqmstream.streaming.kafka.topics import check_topic, create_topic, topic_settings
from dqmstream.streaming.kafka.workarounds.damaged_batches import survive_damage
from dqmstream.streaming.message import Headers, Message

MAX_LETTER_BYTES = MAX_REQUEST_BYTES
READ_TIMEOUT_S = 30.0
"""Longest that reading goes on without a record, although the broker said that there are more."""

RETENTION = ("retention.ms", "retention.bytes")
KEPT = {"cleanup.policy": "delete", **dict.fromkeys(RETENTION, "-1")}
"""Settings of a topic from which nothing is deleted; the broker's own are 7 days unless set otherwise."""

ORIGINAL = "original."
"""Before the name of each header that the message itself had."""

log = structlog.get_logger("dqmstream.kafka")


@dataclass(frozen=True, slots=True)
class _Room:
    """How much of a message a letter takes: bytes of the value, headers, bytes of the key and of each header."""

    value: int
    headers: int
    each: int


WHOLE = _Room(MAX_LETTER_BYTES, MAX_LETTER_BYTES, MAX_LETTER_BYTES)
HEAD = _Room(64 * 2**10, 64, 256)
NOTHING = _Room(0, 0, 0)


class KafkaDeadLetters:
    """Dead letters in a topic of their own, acknowledged by all replicas before anything is filed past them.

    A letter that the topic does not take whole, because its headers come on top of a message of the greatest size, is sent
    with the head of the message, or with nothing of it, and says so. The message itself stays at its offset for as long
    as the broker keeps it.

    The topic is made where it is missing, to keep letters for ever. Of one that stands, settings by which letters are lost
    are told, and left as they are.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        made = create_topic(bootstrap, topic, 1, {**KEPT, "max.message.bytes": str(MAX_LETTER_BYTES)}, exist_ok=True)
        if not made:
            _warn_of_loss(topic, topic_settings(bootstrap, topic))
        self.topic = topic
        self._bootstrap = bootstrap
        self._sender = KafkaSender(bootstrap, topic)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._send(letters, WHOLE)
        except TooLargeError:
            # One of them; those that were taken come once more, under the same keys.
            for letter in letters:
                self._send_what_fits(letter)

    def _send_what_fits(self, letter: DeadLetter) -> None:
        for room in (WHOLE, HEAD):
            self._renew()
            try:
                return self._send([letter], room)
            except TooLargeError:
                continue
        self._renew()
        self._send([letter], NOTHING)

    def _send(self, letters: Sequence[DeadLetter], room: _Room) -> None:
        for letter in letters:
            value = letter.message.value
            head = None if value is None else value[: room.value]
            self._sender.send(letter.key.encode(), head, letter_headers(letter, room))
        self._sender.flush()

    def _renew(self) -> None:
        """A producer that keeps order is of no use after an error."""
        self._sender.close()
        self._sender = KafkaSender(self._bootstrap, self.topic)

    def close(self) -> None:
        self._sender.close()


def _warn_of_loss(topic: str, settings: Mapping[str, str]) -> None:
    """Warn of what a broker deletes by itself. settings: empty where the broker does not tell them."""
    if settings.get("cleanup.policy", "delete") == "compact":  # letters have keys of their own, so all are kept
        return
    if losing := {name: settings[name] for name in RETENTION if settings.get(name, "-1") != "-1"}:
        log.warning(
            "dead letters are deleted by the broker: set retention.ms and retention.bytes of the topic to -1 to keep them",
            topic=topic,
            **losing,
        )


def letter_headers(letter: DeadLetter, room: _Room) -> list[tuple[str, bytes]]:
    """Where the message lay and why it is dead, what is missing of it here, then its own key and headers.

    Kafka tells a header without a value apart from an empty one; the client cannot send it, so it becomes empty.
    """
    message = letter.message
    key, value = message.key, message.value or b""
    headers = [(name, content or b"") for name, content in message.headers]
    kept = [(name[: room.each], content[: room.each]) for name, content in headers[: room.headers]]
    cut = [
        part
        for part, missing in (
            ("value", len(value) > room.value or bool(message.error)),
            ("key", len(key or b"") > room.each),
            ("headers", kept != headers),
        )
        if missing
    ]
    told = [
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % message.partition),
        ("offset", b"%d" % message.offset),
        ("timestamp_ms", b"%d" % message.timestamp_ms),
        ("reason", letter.reason.encode("utf-8", "backslashreplace")),
    ]
    if cut:
        told += [("truncated", b"true"), ("cut", ",".join(cut).encode())]
    if "value" in cut and not message.error:
        told += [("size", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode())]
    if key is not None:
        told.append(("key", key[: room.each]))
    return told + [(f"{ORIGINAL}{name}", content) for name, content in kept]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it was read: where the message lay, why it is dead, and the message.

    key: feed/partition/offset. size: bytes of the message's value. cut: what is not whole in the letter (value, key,
    headers), empty where all is there; only a whole one can be sent back.
    """

    key: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    original_key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    size: int
    cut: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Where the message itself lies, for as long as the broker keeps it."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def obstacle(self) -> str:
        """Why the message cannot be sent back from here, empty if it can."""
        if self.cut:
            what = " and ".join(self.cut)
            return f"{what} not whole in the letter, the message itself lies at topic/partition/offset {self.where}"
        if self.original_key is None and self.value is None:
            return "the message has neither key nor value, which the client does not send"
        return ""


def parse_letter(key: bytes | None, value: bytes | None, headers: Headers) -> Letter | None:
    """The letter in a record of the topic, None if it is none. Of a name that comes twice, the first is the letter's own."""
    told = {name: content or b"" for name, content in reversed(headers) if not name.startswith(ORIGINAL)}
    own = tuple((name.removeprefix(ORIGINAL), content or b"") for name, content in headers if name.startswith(ORIGINAL))
    try:
        return Letter(
            key=(key or b"").decode(),
            topic=told["topic"].decode(),
            partition=int(told["partition"]),
            offset=int(told["offset"]),
            timestamp_ms=int(told["timestamp_ms"]),
            reason=told["reason"].decode("utf-8", "replace"),
            original_key=told.get("key"),
            value=value,
            headers=own,
            size=int(told["size"]) if "size" in told else len(value or b""),
            cut=tuple(part for part in told.get("cut", b"").decode().split(",") if part),
        )
    except (KeyError, ValueError):
        return None


def read_letters(bootstrap: str, topic: str) -> Iterator[Letter]:
    """All letters that the topic holds now, as they come; what arrives meanwhile is left for the next time.

    A letter that was written twice comes twice. Records that are no letters are passed over, with a warning at the end.
    Raises BrokerError where the topic is missing, cannot be read, or gives nothing for 30 s.
    """
    consumer = connect(
        KafkaConsumer, bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", allow_auto_create_topics=False
    )
    survive_damage(consumer, consumer.highwater)
    foreign = 0
    try:
        with guarded(consumer, bootstrap, f"topic {topic} cannot be read"):
            if topic not in consumer.topics():
                raise BrokerError(
                    f"{bootstrap} has no topic {topic}: no letter was ever written, or --dead-letter-topic is another"
                )
            for message in _messages(consumer, bootstrap, topic):
                letter = None if message.error else parse_letter(message.key, message.value, message.headers)
                if letter is None:
                    foreign += 1
                else:
                    yield letter
    finally:
        consumer.close(autocommit=False)
    if foreign:
        log.warning("records that are no dead letters were passed over", topic=topic, records=foreign)


def _messages(consumer: KafkaConsumer, bootstrap: str, topic: str) -> Iterator[Message]:
    """All that the topic holds now. Raises BrokerError where nothing comes for READ_TIMEOUT_S."""
    assigned = [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(assigned)
    ends = consumer.end_offsets(assigned)
    for tp, beginning in consumer.beginning_offsets(assigned).items():
        consumer.seek(tp, beginning)
    news = time.monotonic()
    while any(consumer.position(tp) < ends[tp] for tp in assigned):
        records = consumer.poll(timeout_ms=1000)
        if records:
            news = time.monotonic()
        elif time.monotonic() > news + READ_TIMEOUT_S:
            raise BrokerError(f"{bootstrap} gives nothing of topic {topic} for {READ_TIMEOUT_S:.0f} s, although it holds more")
        for tp, found in records.items():
            yield from (message for message in found if message.offset < ends[tp])


def list_letters(bootstrap: str, topic: str) -> list[Letter]:
    """Each letter that the topic holds once, the oldest message first. Raises BrokerError.

    Without what the message held, of which a topic may have more than memory: value and key are empty, headers left out.
    """
    found: dict[str, Letter] = {}
    for letter in read_letters(bootstrap, topic):
        if letter.key not in found or found[letter.key].cut:  # written twice, it may be whole the second time
            found[letter.key] = replace(
                letter, value=_emptied(letter.value), original_key=_emptied(letter.original_key), headers=()
            )
    return sorted(found.values(), key=lambda letter: (letter.timestamp_ms, letter.topic, letter.partition, letter.offset))


def _emptied(data: bytes | None) -> bytes | None:
    return None if data is None else b""


def find_letter(bootstrap: str, topic: str, key: str) -> Letter:
    """The letter of that key, a whole one if there is one. Raises InputError if there is none, BrokerError."""
    best = None
    for letter in read_letters(bootstrap, topic):
        if letter.key == key and (best is None or best.cut):
            best = letter
    if best is None:
        raise unknown(topic, key)
    return best


def unknown(topic: str, key: str) -> InputError:
    return InputError(f"topic {topic} holds no letter {key}: see `dqmstream deadletters list`")


@dataclass(frozen=True, slots=True)
class Republished:
    """How many messages were sent to each topic, and the letters that could not be sent, without what they held."""

    sent: dict[str, int]
    refused: list[Letter]


def republish(
    bootstrap: str, topic: str, keys: Sequence[str] | None, to: str | None, progress: Callable[[int, int], None]
) -> Republished:
    """Send the messages of these letters, or of all, back to the topics that they came from, or to another.

    On return the broker has acknowledged all; the letters stay. A letter that was written twice is sent once.
    Raises, with nothing sent, InputError for a key that no letter has; BrokerError.
    """
    known = {letter.key: letter for letter in list_letters(bootstrap, topic)}
    for key in keys or ():
        if key not in known:
            raise unknown(topic, key)
    chosen = {key: known[key] for key in (known if keys is None else keys)}
    refused = [letter for letter in chosen.values() if letter.obstacle]
    due = {key for key, letter in chosen.items() if not letter.obstacle}
    total = len(due)
    sent: dict[str, int] = {}
    senders: dict[str, KafkaSender] = {}
    try:
        for target in sorted({to or chosen[key].topic for key in due}):
            check_topic(bootstrap, target)
            senders[target] = KafkaSender(bootstrap, target)
        for letter in read_letters(bootstrap, topic) if due else ():
            if letter.key not in due or letter.cut:
                continue
            due.remove(letter.key)
            target = to or letter.topic
            senders[target].send(letter.original_key, letter.value, letter.headers)
            sent[target] = sent.get(target, 0) + 1
            progress(total - len(due), total)
        for sender in senders.values():
            sender.flush()
    finally:
        for sender in senders.values():
            sender.close()
    return Republished(sent, refused)
