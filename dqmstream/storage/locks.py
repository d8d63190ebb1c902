"""Locks and syncs that make commits on a local filesystem atomic and durable, and files that are replaced atomically.

Icechunk's local storage loses concurrent commits and never syncs (docs/decisions/2026-11-29-clock-disk-and-expiry.md). Object
stores need neither lock nor sync.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dqmstream.storage.failures import telling_system

_libc = ctypes.CDLL(None, use_errno=True)


class Lock:
    """A lock on the folder at path, held by this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def sync(self) -> None:
        """Write everything in the folder's filesystem to the disk.

        Raises OSError if the disk has reported an error since the lock was taken, even if another process was told of it.
        """
        _syncfs(self._descriptor, self.path)


@contextmanager
def exclusive(path: Path) -> Iterator[Lock]:
    """Hold an advisory lock on the folder at path. Waits for another holder; the kernel frees the lock of a dead process.

    The folder itself is locked, so there is no lock file among those of Icechunk. Raises ArchiveError if the folder cannot be
    opened or its filesystem has no locks.
    """
    with telling_system(path, "cannot be locked"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with telling_system(path, "cannot be locked"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Lock(path, descriptor)
    finally:
        os.close(descriptor)


def try_exclusive(path: Path) -> int | None:
    """Lock the folder for the life of this process. Returns the descriptor, None if another process holds the lock.

    Also sets a record lock, which `is_held` can query. Raises ArchiveError if the folder cannot be opened or its filesystem has
    no locks.
    """
    with telling_system(path, "cannot be locked"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole(fcntl.F_RDLCK))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a process holds the folder by `try_exclusive`. Takes no lock, so the query cannot make another start fail.

    The kernel can query record locks (F_OFD_GETLK), but not a flock(2) without taking it. The record lock is a read lock, since
    a folder cannot be opened for writing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole(fcntl.F_WRLCK))
    finally:
        os.close(descriptor)
    return int(struct.unpack(_FLOCK, answer)[0]) != fcntl.F_UNLCK


_FLOCK = "hhqqi4x"
"""struct flock of Linux: type, whence, start, length, process."""


def _whole(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def sync_filesystem(path: Path) -> None:
    """Write everything in path's filesystem to the disk. Raises OSError if the disk reports an error."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _syncfs(descriptor, path)
    finally:
        os.close(descriptor)


def _syncfs(descriptor: int, path: Path) -> None:
    """syncfs(2); Python 3.11 has no os.syncfs."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def filesystem_kind(path: Path, table: str | None = None) -> str:
    """Kind of the filesystem that holds path, or will hold it, with links followed: "ext4", "nfs4", ...

    "" if the system does not tell. A Lustre that is not mounted with `flock` is "lustre without flock". table: contents of
    /proc/self/mountinfo (Linux).
    """
    mounts = Path("/proc/self/mountinfo")
    if table is None:
        table = mounts.read_text() if mounts.exists() else ""
    place = path.resolve()  # a link, or "..", may lead to another filesystem
    found = {}
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = Path(fields.split()[4].encode().decode("unicode_escape"))
        if place.is_relative_to(mounted):
            kind, options = rest.split()[0], rest.split()[-1]
            is_lockless = kind == "lustre" and "flock" not in options.split(",")
            found[len(mounted.parts)] = f"{kind} without flock" if is_lockless else kind
    return found[max(found)] if found else ""  # a later mount on the same place hides the earlier


def empty_folder(path: Path) -> None:
    """Remove everything in the folder. The folder itself, and a lock on it, stay."""
    for entry in path.iterdir():
        remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at path. A reader sees the old bytes or the new ones, also after a crash.

    When this returns, the new bytes are on the disk under that name. If they cannot be written, no partial file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path), partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of the system that have none, as those of an open file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def sync_folder(path: Path) -> None:
    """Write the folder's list of files to the disk. Without it, a rename or a new file can be lost in a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
