"""Commits on a machine whose clock was set back.

Icechunk refuses a commit whose time is not after its parent's, and takes the time from the machine. A snapshot that was
committed while the clock was ahead would stop all writing until time has caught up. A short lead is waited for. For a long
one, the times of the snapshots that lie in the future are moved back, in their files, as `expire_snapshots` edits the parent:
nothing else of a snapshot changes.

    snapshot file: 36 bytes of magic and client, version 1, type 1 (snapshot), compression 1 (zstd), then a FlatBuffer
"""

from __future__ import annotations

import struct
import time
from datetime import datetime, timedelta
from pathlib import Path

import icechunk
import structlog
from numcodecs.zstd import Zstd

from dqmstream.errors import ArchiveError
from dqmstream.storage.locks import write_atomically

LONGEST_WAIT_S = 60.0
"""A lead of the newest commit that is waited for."""

EARLIEST_NS = 1_735_689_600_000_000_000
"""2025-01-01: a clock that is before it was never set."""

_MAGIC, _HEADER, _KIND = "ICE🧊CHUNK".encode(), 39, b"\x01\x01\x01"
_FLUSHED_AT = 3
"""Number of the field in Icechunk's flatbuffers/snapshot.fbs."""

log = structlog.get_logger("dqmstream.storage")


class ClockSetBack(ArchiveError):
    """The clock was set back while a commit was made: nothing was filed, and the same can be filed again at once."""


def lead_s(repository: icechunk.Repository, snapshot: str) -> float:
    """Seconds by which a snapshot's time is ahead of this machine's clock; negative where it is in the past."""
    return float(repository.lookup_snapshot(snapshot).written_at.timestamp() - time.time())


def settle(path: Path, repository: icechunk.Repository) -> icechunk.Repository:
    """Wait, or move times back, until a commit can follow the newest. Called with the archive's lock held.

    Returns the repository, opened anew where another one must be used from now on. Raises ArchiveError where the clock was
    never set, or where times would have to be moved and the files are not as expected.
    """
    head = repository.lookup_branch("main")
    if lead_s(repository, head) < 0:
        return repository
    repository = repository.reopen()  # another process may have moved the times already
    lead = lead_s(repository, head)
    if lead < 0:
        return repository
    if time.time_ns() < EARLIEST_NS:
        raise ArchiveError(f"{path} cannot be written: the clock says {_clock()}: set the clock of this machine")
    if lead <= LONGEST_WAIT_S:
        log.warning("the clock was set back: commits wait until it has caught up with the newest", seconds=round(lead, 1))
        wait(repository, head)
        return repository
    moved = _move_back(path, repository, head, lead)
    log.warning(
        "the clock was set back: the times of the newest commits were moved back with it", seconds=round(lead), commits=moved
    )
    return repository.reopen()


def wait(repository: icechunk.Repository, snapshot: str) -> None:
    """Sleep until the clock has passed the snapshot's time. Raises ClockSetBack where that would take longer than may be."""
    while (lead := lead_s(repository, snapshot)) >= 0:
        if lead > LONGEST_WAIT_S:
            raise ClockSetBack(f"the clock was set back by {lead:.0f} s while a commit was made: nothing was filed, try again")
        time.sleep(min(lead + 0.001, 1.0))


def _move_back(path: Path, repository: icechunk.Repository, head: str, lead: float) -> int:
    """Move the times of all snapshots in main's history that lie in the future back by the lead; returns how many."""
    back, now = timedelta(seconds=lead + 0.001), time.time()
    ahead, before = [], datetime.min
    for info in repository.ancestry(snapshot_id=head):
        if info.written_at.timestamp() < now:
            before = info.written_at
            break
        ahead.append(info)
    # The oldest first: a process that is killed here leaves the newest ahead, and the next one goes on.
    for info in reversed(ahead):
        moved = info.written_at - back
        if before != datetime.min and moved <= before:
            moved = before + timedelta(microseconds=1)
        set_time(path / "snapshots" / info.id, info.written_at, moved)
        before = moved
    return len(ahead)


def set_time(file: Path, before: datetime, after: datetime) -> None:
    """Replace the time `before` in a snapshot's file. Raises ArchiveError, with nothing changed, where it says another."""
    data = file.read_bytes()
    try:
        if not (data.startswith(_MAGIC) and data[_HEADER - 3 : _HEADER] == _KIND):
            raise ValueError("another format")
        body = bytearray(Zstd().decode(data[_HEADER:]))
        place = _field(body, _FLUSHED_AT)
        if struct.unpack_from("<Q", body, place)[0] != _microseconds(before):
            raise ValueError("another time")
    except (ValueError, RuntimeError, struct.error) as error:
        raise ArchiveError(
            f"{file} is of a commit that the clock, now {_clock()}, has not reached ({before:%Y-%m-%dT%H:%M:%SZ}), and cannot "
            f"be given another time ({error}): set the clock, or wait; nothing was filed"
        ) from error
    struct.pack_into("<Q", body, place, _microseconds(after))
    write_atomically(file, data[:_HEADER] + Zstd(level=3).encode(bytes(body)))


def _field(buffer: bytearray, number: int) -> int:
    """Where a field of the root table of a FlatBuffer lies. Raises ValueError where it has none."""
    (table,) = struct.unpack_from("<I", buffer, 0)
    names = table - struct.unpack_from("<i", buffer, table)[0]
    length, offset = struct.unpack_from("<H", buffer, names)[0], 0
    if 4 + 2 * number < length:
        (offset,) = struct.unpack_from("<H", buffer, names + 4 + 2 * number)
    if not offset:
        raise ValueError("no time")
    return int(table + offset)


def _microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
