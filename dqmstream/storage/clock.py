"""Commits on a machine whose clock was set back.

Icechunk refuses a commit whose time, by the machine's clock, is not after its parent's. A snapshot that was committed while the
clock was ahead would stop all writing until the clock has caught up. If the lead is short, commits wait. If it is long, the
times of snapshots in the future are moved back in their files, and nothing else of them changes.

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
"""Longest lead of the newest commit for which commits wait."""

EARLIEST_NS = 1_735_689_600_000_000_000
"""2025-01-01. A clock before that was never set."""

_MAGIC, _HEADER, _KIND = "ICE🧊CHUNK".encode(), 39, b"\x01\x01\x01"
_FLUSHED_AT = 3
"""Number of the field `flushed_at` in Icechunk's flatbuffers/snapshot.fbs."""

log = structlog.get_logger("dqmstream.storage")


class ClockSetBack(ArchiveError):
    """The clock was set back during a commit. Nothing was filed, and the caller can file the same again at once."""


def lead_s(repository: icechunk.Repository, snapshot: str) -> float:
    """Seconds by which a snapshot's time is ahead of this machine's clock; negative if it is in the past."""
    return float(repository.lookup_snapshot(snapshot).written_at.timestamp() - time.time())


def settle(path: Path, repository: icechunk.Repository) -> icechunk.Repository:
    """Wait, or move times back, until a commit can follow the newest one. The caller holds the archive's lock.

    Returns the repository to use from now on, which may have been reopened. Raises ArchiveError if the clock was never set, or
    if times must be moved and a file is not as expected.
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
    """Sleep until the clock has passed the snapshot's time. Raises ClockSetBack if that takes longer than LONGEST_WAIT_S."""
    while (lead := lead_s(repository, snapshot)) >= 0:
        if lead > LONGEST_WAIT_S:
            raise ClockSetBack(f"the clock was set back by {lead:.0f} s while a commit was made: nothing was filed, try again")
        time.sleep(min(lead + 0.001, 1.0))


def _move_back(path: Path, repository: icechunk.Repository, head: str, lead: float) -> int:
    """Move the times of all future snapshots of main back by the lead. Returns how many there were."""
    back, now = timedelta(seconds=lead + 0.001), time.time()
    ahead, before = [], datetime.min
    for info in repository.ancestry(snapshot_id=head):
        if info.written_at.timestamp() < now:
            before = info.written_at
            break
        ahead.append(info)
    # The oldest first: if this process is killed, the newest is still ahead, and the next process continues.
    for info in reversed(ahead):
        moved = info.written_at - back
        if before != datetime.min and moved <= before:
            moved = before + timedelta(microseconds=1)
        set_time(path / "snapshots" / info.id, info.written_at, moved)
        before = moved
    return len(ahead)


def set_time(file: Path, before: datetime, after: datetime) -> None:
    """Replace the time `before` in a snapshot's file. Raises ArchiveError, with nothing changed, if it has another time."""
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
    """Position of a field of a FlatBuffer's root table. Raises ValueError if it has no such field."""
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
