"""Files of JSON lines that outlive a crash: a line is on the disk before it counts, and half a line is none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dqmstream.storage.locks import naming, sync_folder, write_atomically


class Entries:
    """A dataclass that can be read from a JSON object."""

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Read a JSON object; entries that this version does not know are ignored. Raises TypeError where one is missing."""
        return cls(**{name: value for name, value in entries.items() if name in cls.__annotations__})


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Write a line at the end of the file; it is on the disk when this returns."""
    is_new = not path.exists()
    with naming(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file, without a last line that a crash cut off. Raises OSError, or ValueError for another file."""
    return [json.loads(line) for line in _whole_lines(path)]


def keep_lines(path: Path, count: int) -> None:
    """Keep the first `count` lines of the file as they are, whoever wrote them; a file that does not exist is not made."""
    if path.exists():
        write_atomically(path, "".join(_whole_lines(path)[:count]).encode())


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines(keepends=True)
