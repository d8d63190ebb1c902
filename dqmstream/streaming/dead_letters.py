"""Dead letters in a folder, for feeds without a broker. (Kafka's are in `streaming.kafka`.)"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from dqmstream.storage.locks import sync_filesystem, write_atomically
from dqmstream.streaming.feed import DeadLetter


class FolderDeadLetters:
    """One JSON file a letter, named after its key; the value is in base64. The folder is made with the first letter."""

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
                "key": _text(message.key),
                "value": _text(message.value),
                "headers": [[name, _text(value)] for name, value in message.headers],
            }
            write_atomically(path, json.dumps(record, indent=1).encode())
        sync_filesystem(self.folder)

    def close(self) -> None:
        """Nothing is held open."""


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")
