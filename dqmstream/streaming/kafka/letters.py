"""Dead letters in a Kafka topic."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from dqmstream.streaming.feed import DeadLetter
from dqmstream.streaming.kafka.client import create_topic
from dqmstream.streaming.kafka.sender import MAX_REQUEST_BYTES, KafkaSender, TooLargeError

MAX_LETTER_BYTES = MAX_REQUEST_BYTES
MAX_LETTER_HEADERS = 64
TRUNCATED_BYTES = 64 * 2**10


class KafkaDeadLetters:
    """Dead letters in a topic of their own, acknowledged by all replicas before anything is filed past them.

    A letter that the topic does not take whole, because its headers come on top of a message of the greatest size, is sent
    with its first 64 KiB, the size and the SHA-256 of the rest; the message itself stays at its offset for as long as
    the broker keeps it.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        create_topic(bootstrap, topic, 1, {"max.message.bytes": str(MAX_LETTER_BYTES)}, exist_ok=True)
        self.topic = topic
        self._bootstrap = bootstrap
        self._sender = KafkaSender(bootstrap, topic)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._send(letters)
        except TooLargeError:
            self._renew()
            # One of them; those that were taken come once more, under the same keys.
            for letter in letters:
                try:
                    self._send([letter])
                except TooLargeError:
                    self._renew()
                    self._send_truncated(letter)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._sender.send(letter.key.encode(), letter.message.value, _letter_headers(letter, MAX_LETTER_BYTES))
        self._sender.flush()

    def _send_truncated(self, letter: DeadLetter) -> None:
        value = letter.message.value or b""
        size = [("size", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode())]
        headers = [*_letter_headers(letter, 256), ("truncated", b"true"), *size]
        self._sender.send(letter.key.encode(), value[:TRUNCATED_BYTES], headers)
        self._sender.flush()

    def _renew(self) -> None:
        """A producer that keeps order is of no use after an error."""
        self._sender.close()
        self._sender = KafkaSender(self._bootstrap, self.topic)

    def close(self) -> None:
        self._sender.close()


def _letter_headers(letter: DeadLetter, longest: int) -> list[tuple[str, bytes]]:
    """Where the message lay and why it is dead, then its own key and headers; longest: bytes of each, and of the reason."""
    message = letter.message
    headers = [
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % message.partition),
        ("offset", b"%d" % message.offset),
        ("timestamp_ms", b"%d" % message.timestamp_ms),
        ("reason", letter.reason.encode()),
    ]
    if message.key is not None:
        headers.append(("original.key", message.key))
    # Kafka tells a header without a value apart from an empty one, the client cannot send it.
    headers += [(f"original.{name}"[:longest], value or b"") for name, value in message.headers]
    return [(name, value[:longest]) for name, value in headers[:MAX_LETTER_HEADERS]]
