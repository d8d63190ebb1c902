"""A dead letter as a Kafka record: how it is written, and how it is read back."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.kafka.sender import MAX_REQUEST_BYTES
from dqmstream.streaming.message import Headers

MAX_LETTER_BYTES = MAX_REQUEST_BYTES

ORIGINAL = "original."
"""Before the name of each header that the message itself had."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a message a letter holds: bytes of the value, number of headers, bytes of the key and of each header."""

    value: int
    headers: int
    each: int


WHOLE = Extent(MAX_LETTER_BYTES, MAX_LETTER_BYTES, MAX_LETTER_BYTES)
HEAD = Extent(64 * 2**10, 64, 256)
NOTHING = Extent(0, 0, 0)


def letter_headers(letter: DeadLetter, extent: Extent) -> list[tuple[str, bytes]]:
    """Where the message lay, the reason, what the letter lacks of the message, then the message's key and headers.

    A header without a value becomes an empty one: Kafka tells the two apart, but the client cannot send the first.
    """
    message = letter.message
    key, value = message.key, message.value or b""
    headers = [(name, content or b"") for name, content in message.headers]
    kept = [(name[: extent.each], content[: extent.each]) for name, content in headers[: extent.headers]]
    cut = [
        part
        for part, missing in (
            ("value", len(value) > extent.value or bool(message.error)),
            ("key", len(key or b"") > extent.each),
            ("headers", kept != headers),
        )
        if missing
    ]
    own = [
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % message.partition),
        ("offset", b"%d" % message.offset),
        ("timestamp_ms", b"%d" % message.timestamp_ms),
        ("reason", letter.reason.encode("utf-8", "backslashreplace")),
    ]
    if cut:
        own += [("truncated", b"true"), ("cut", ",".join(cut).encode())]
    if "value" in cut and not message.error:
        own += [("size", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode())]
    if key is not None:
        own.append(("key", key[: extent.each]))
    return own + [(f"{ORIGINAL}{name}", content) for name, content in kept]


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter as it was read: where the message lay, the reason, and the message.

    key: feed/partition/offset. size: bytes of the message's value. cut: parts of the message that the letter does not hold
    whole (value, key, headers). Only a message that is whole can be sent again.
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
        """Why the message cannot be sent again from the letter, empty if it can."""
        if self.cut:
            what = " and ".join(self.cut)
            return f"{what} not whole in the letter, the message itself lies at topic/partition/offset {self.where}"
        if self.original_key is None and self.value is None:
            return "the message has neither key nor value, which the client does not send"
        return ""


def parse_letter(key: bytes | None, value: bytes | None, headers: Headers) -> StoredLetter | None:
    """The letter in a record, None if it is no letter. Of a header name that comes twice, the first is the letter's own."""
    own = {name: content or b"" for name, content in reversed(headers) if not name.startswith(ORIGINAL)}
    original = tuple((name.removeprefix(ORIGINAL), content or b"") for name, content in headers if name.startswith(ORIGINAL))
    try:
        return StoredLetter(
            key=(key or b"").decode(),
            topic=own["topic"].decode(),
            partition=int(own["partition"]),
            offset=int(own["offset"]),
            timestamp_ms=int(own["timestamp_ms"]),
            reason=own["reason"].decode("utf-8", "replace"),
            original_key=own.get("key"),
            value=value,
            headers=original,
            size=int(own["size"]) if "size" in own else len(value or b""),
            cut=tuple(part for part in own.get("cut", b"").decode().split(",") if part),
        )
    except (KeyError, ValueError):
        return None
