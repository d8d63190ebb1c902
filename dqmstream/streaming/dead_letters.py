"""Dead letters: messages that cannot be stored, each kept with its reason; here in a folder, in Kafka by `streaming.kafka`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dqmstream.storage.locks import sync_filesystem, write_atomically
from dqmstream.streaming.message import Message


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that cannot be stored, and why. It is kept under the key feed/partition/offset."""

    feed: str
    topic: str
    message: Message
    reason: str

    @property
    def key(self) -> str:
        return f"{self.feed}/{self.message.partition}/{self.message.offset}"


class DeadLetters(Protocol):
    """Where dead letters are kept."""

    def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters; on return they are on disk. After a crash the same letter may come again, under the same key."""
        ...

    def close(self) -> None: ...


class FolderDeadLetters:
    """One JSON file for each dead letter, named after its key; key, value and headers are in base64.

    The folder is made with the first letter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            path = self.folder / f"{letter.key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            message = letter.message
            record = {
                "feed": letter.feed,
                "topic": letter.topic,
                "partition": message.partition,
                "offset": message.offset,
                "timestamp_ms": message.timestamp_ms,
                "reason": letter.reason,
                "key": _base64(message.key),
                "value": _base64(message.value),
                "headers": [[name, _base64(value)] for name, value in message.headers],
            }
            write_atomically(path, json.dumps(record, indent=1).encode())
        sync_filesystem(self.folder)

    def close(self) -> None:
        """Nothing is held open."""


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")
