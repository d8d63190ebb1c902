"""Sending the messages of dead letters again, once what was wrong is mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dqmstream.streaming.kafka.dead_letter_record import StoredLetter
from dqmstream.streaming.kafka.dead_letter_topic import list_letters, read_letters, unknown_key
from dqmstream.streaming.kafka.sender import KafkaSender
from dqmstream.streaming.kafka.topics import check_topic


@dataclass(frozen=True, slots=True)
class Republished:
    """sent: number of messages by topic. refused: letters that could not be sent, without their messages."""

    sent: dict[str, int]
    refused: list[StoredLetter]


def republish(
    bootstrap: str, topic: str, keys: Sequence[str] | None, to: str | None, progress: Callable[[int, int], None]
) -> Republished:
    """Send the messages of these dead letters, or of all, to the topics that they came from, or to another.

    On return the broker has acknowledged all; the letters stay. A letter that was written twice is sent once. progress:
    called with the number of messages sent, and of all. Raises, with nothing sent, InputError for an unknown key; BrokerError.
    """
    known = {letter.key: letter for letter in list_letters(bootstrap, topic)}
    for key in keys or ():
        if key not in known:
            raise unknown_key(topic, key)
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
