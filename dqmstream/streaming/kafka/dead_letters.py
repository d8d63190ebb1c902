"""Dead letters in a Kafka topic of their own, as ingest writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.kafka.dead_letter_record import HEAD, MAX_LETTER_BYTES, NOTHING, WHOLE, Extent, letter_headers
from dqmstream.streaming.kafka.sender import KafkaSender, TooLargeError
from dqmstream.streaming.kafka.topics import create_topic, topic_settings

RETENTION = ("retention.ms", "retention.bytes")
KEPT = {"cleanup.policy": "delete", **dict.fromkeys(RETENTION, "-1")}
"""Settings of a topic from which nothing is deleted; a broker's own are 7 days unless set otherwise."""

log = structlog.get_logger("dqmstream.kafka")


class KafkaDeadLetters:
    """Dead letters in a topic, acknowledged by all replicas before anything behind their messages is filed.

    The topic is made where it is missing, so that it keeps letters for ever. If it exists with settings by which letters are
    lost, a warning says so and they stay as they are.

    A message of the greatest size leaves no room for the letter's headers. Such a letter holds the head of the message, or
    nothing of it, and says so; the message itself stays at its offset for as long as the broker keeps it.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        made = create_topic(bootstrap, topic, 1, {**KEPT, "max.message.bytes": str(MAX_LETTER_BYTES)}, exist_ok=True)
        if not made:
            _warn_of_retention(topic, topic_settings(bootstrap, topic))
        self.topic = topic
        self._bootstrap = bootstrap
        self._sender = KafkaSender(bootstrap, topic)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._send(letters, WHOLE)
        except TooLargeError:
            # One letter is too large. Those that were accepted come once more, under the same keys.
            for letter in letters:
                self._send_what_fits(letter)

    def _send_what_fits(self, letter: DeadLetter) -> None:
        for extent in (WHOLE, HEAD):
            self._renew()
            try:
                return self._send([letter], extent)
            except TooLargeError:
                continue
        self._renew()
        self._send([letter], NOTHING)

    def _send(self, letters: Sequence[DeadLetter], extent: Extent) -> None:
        for letter in letters:
            value = letter.message.value
            head = None if value is None else value[: extent.value]
            self._sender.send(letter.key.encode(), head, letter_headers(letter, extent))
        self._sender.flush()

    def _renew(self) -> None:
        """Take another producer: an idempotent one sends nothing more after an error."""
        self._sender.close()
        self._sender = KafkaSender(self._bootstrap, self.topic)

    def close(self) -> None:
        self._sender.close()


def _warn_of_retention(topic: str, settings: Mapping[str, str]) -> None:
    """Warn where the broker deletes letters. settings: of the topic, empty where the broker does not tell them."""
    if settings.get("cleanup.policy", "delete") == "compact":  # each letter has its own key, so all are kept
        return
    if losing := {name: settings[name] for name in RETENTION if settings.get(name, "-1") != "-1"}:
        log.warning(
            "dead letters are deleted by the broker: set retention.ms and retention.bytes of the topic to -1 to keep them",
            topic=topic,
            **losing,
        )
