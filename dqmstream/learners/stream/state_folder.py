"""The state folder of a learner: its ledger, history and checkpoints, used by one process at a time.

<state>/<name>/state.json       the learner's identity: strategy, seed, memory, archive
               ledger.jsonl     which lumisections each experience consists of
               history.jsonl    the figures after each experience
               checkpoints/     the last two
               scores/          log-probabilities of the last two evaluations
               windows.jsonl    the predictions for each window, of a learner with windows
               windows/         its last two checkpoints between runs
               status.json      what the learner is doing
               heartbeat        signs of life, and how it ended (`learners.stream.heartbeat`)
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dqmstream.errors import StateError, StateInUseError
from dqmstream.learners.stream.heartbeat import DONE, FILE_NAME, Heartbeat, read_sign
from dqmstream.storage.locks import empty_folder, is_held, try_exclusive, write_atomically
from dqmstream.storage.repository import warn_of_locks

LIVE = "live"
"""Name of the learner that `consume` and `learn` keep."""

STATUS_S = 5.0
"""Longest time for which status.json is not rewritten."""

HANGS = "hangs"


@dataclass(frozen=True)
class Identity:
    """What a learner is; a folder that was made for another one is refused. An entry that the folder lacks has its default.

    stamp: of the state of a strategy object that no registry knows; "" for a strategy that is registered by its name.
    """

    strategy: str
    seed: int
    memory_bytes: int
    evaluation_samples: int
    archive_id: str
    watch_samples: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    window: int = 0
    label_delay: int = 1
    stamp: str = ""
    task: str = "runs"

    def to_json(self) -> dict[str, Any]:
        """The entries of state.json; `stamp` only where there is one."""
        entries = asdict(self)
        return entries if self.stamp else {name: value for name, value in entries.items() if name != "stamp"}


class StateFolder:
    """The folder of one learner, locked by this process until `close`.

    id: of this learner, 8 hexadecimal digits. dropped_id: of the learner that was removed from the folder, "" if none was.
    """

    def __init__(self, path: Path, identity: Identity, *, anew: bool = False) -> None:
        """Open or create the folder. anew: remove what a learner left there.

        Raises StateInUseError if another process holds it, StateError if it was made for another learner.
        """
        path.mkdir(parents=True, exist_ok=True)
        if not anew:
            check_identity(path, identity)  # before the lock: a start with wrong flags must not make a correct one fail
        warn_of_locks(path)
        self.path = path
        lease = try_exclusive(path)
        if lease is None:
            raise StateInUseError(f"{path} is in use by another learner: stop it, or give another --state or --name")
        self._lease = lease
        self._status: dict[str, Any] = {}
        self._status_time = 0.0
        self.dropped_id = ""
        self._heartbeat: Heartbeat | None = None
        try:
            if anew:
                self._empty()
            self._heartbeat = Heartbeat(path)
            self.id = self._claim(identity)
        except BaseException as error:
            self.close(error)
            raise

    def _empty(self) -> None:
        others = any(entry.name != FILE_NAME for entry in self.path.iterdir())
        if others and not (self.path / "state.json").exists():
            raise StateError(f"{self.path} holds files that no learner wrote: give another --state")
        if (self.path / "state.json").exists():
            self.dropped_id = str(read_json(self.path / "state.json").get("id", ""))
        empty_folder(self.path)

    def _claim(self, identity: Identity) -> str:
        path = self.path / "state.json"
        if path.exists():
            check_identity(self.path, identity)
            return str(read_json(path)["id"])
        state_id = uuid.uuid4().hex[:8]
        write_atomically(path, json.dumps({"id": state_id, "format": 1, **identity.to_json()}, indent=1).encode())
        return state_id

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    @property
    def windows(self) -> Path:
        return self.path / "windows.jsonl"

    @property
    def window_checkpoints(self) -> Path:
        return self.path / "windows"

    def write_status(self, status: dict[str, Any]) -> None:
        """Write status.json, where something has changed and every few seconds."""
        now = time.time()
        if status == self._status and now - self._status_time < STATUS_S:
            return
        self._status, self._status_time = status, now
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        write_atomically(self.path / "status.json", json.dumps({**status, "written": written}, indent=1).encode())

    def beat(self) -> None:
        """Report progress, as a sign of life."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def close(self, error: BaseException | None = None) -> None:
        """Release the folder. error: why the learner ended; it is written to the folder, even on a full disk."""
        if self._heartbeat is not None:
            self._heartbeat.close(error)
        os.close(self._lease)


def check_identity(folder: Path, identity: Identity) -> None:
    """Raise StateError if the folder was made for a learner of another identity. A folder that does not exist passes."""
    path = folder / "state.json"
    if not path.exists():
        return
    stored = read_json(path)
    for entry in fields(identity):
        name, value = entry.name, getattr(identity, entry.name)
        unsaid = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        before = stored.get(name, None if unsaid is MISSING else unsaid)
        if before != value:
            raise StateError(
                f"{folder} belongs to a learner with {name} {before}, not {value}: "
                "give another --state or --name, or the same flags as before"
            )


def is_learner(folder: Path) -> bool:
    """Whether a learner has written to the folder, or has tried to."""
    return (folder / "state.json").exists() or (folder / FILE_NAME).exists()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises StateError if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} holds no JSON object")
    return found


def read_status(folder: Path) -> dict[str, Any] | None:
    """The last status.json of the folder's learner; None if it never ran."""
    path = folder / "status.json"
    return read_json(path) if path.exists() else None


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder now; False where it does not exist. Takes no lock."""
    try:
        return is_held(folder)
    except FileNotFoundError:
        return False


def life(folder: Path, hang_s: float) -> dict[str, Any]:
    """Whether the folder's learner runs, and if not, how it ended.

    running: a process holds the folder. condition: running, hangs (no sign of life for hang_s), ended, failed, killed (it ended
    without writing why), or "not started". error: why it failed. silent_s: seconds since the last sign of life of a running
    learner, None where that is unknown, as on another machine. busy_s: seconds that it had spent on its current step by then.
    """
    running, sign = is_running(folder), read_sign(folder)
    silent_s = sign.silent_s if running and sign else None
    if running:
        condition = HANGS if silent_s is not None and silent_s > hang_s else "running"
    elif sign is None:
        condition = "ended" if (folder / "status.json").exists() else "not started"
    else:
        condition = {"": "killed", DONE: "ended"}.get(sign.ended, "failed")
    return {
        "running": running,
        "condition": condition,
        "error": sign.ended if sign and condition == "failed" else None,
        "silent_s": None if silent_s is None else round(silent_s, 1),
        "busy_s": sign.busy_s if running and sign else None,
    }
