"""Errors of the storage as an ArchiveError of one line: which archive, what failed, and what to do.

Icechunk reports all failures as one type, with the number of the system's error in the text. `telling` turns these into an
ArchiveError, `telling_system` the system's own errors.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import icechunk

from dqmstream.errors import ArchiveError, DqmstreamError, InputError

_NO_LOCKS = "its filesystem keeps no locks, which keep two writers apart: put it on a local disk"

ADVICE = {
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOSPC: "the disk is full: make room and start again",
    errno.EDQUOT: "the quota is used up: make room and start again",
    errno.EROFS: "the disk is read-only: mount it writable",
    errno.EIO: "the disk reports an I/O error: check the disk, then run `dqmstream archive verify`",
    errno.EACCES: "permission denied: run as the owner of the archive",
    errno.EPERM: "permission denied: run as the owner of the archive",
    errno.EFBIG: "a file would be larger than this process may write: raise the limit (ulimit -f)",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOTDIR: "a part of the path is no folder",
}
"""What is wrong and what to do, by number of the system's error."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOLCK)

DAMAGED = "run `dqmstream archive verify` to list what is lost"


class Unreadable(ArchiveError):
    """Values of an array cannot be read, since a file is missing or damaged. `telling` adds the archive's path."""


def system_error(error: BaseException) -> int:
    """Number of the system's error behind an exception, 0 if there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def is_damage(error: ArchiveError) -> bool:
    """Whether a file is missing or damaged, so that reading again cannot help, as it can after an error of the system."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    unreadable = any(isinstance(one, Unreadable) for one in causes)
    return unreadable and all(system_error(one) in (0, errno.ENOENT) for one in causes)


def reason(error: BaseException) -> str:
    """What is wrong and what to do, in one line."""
    text = str(error)
    if gone := re.search(r"Object at location (?:\S*/)?(\w+/\S+) not found", text):
        return f"{gone[1]} is missing: {DAMAGED}"
    number = system_error(error)
    if number in ADVICE:
        return ADVICE[number]
    if number:
        return os.strerror(number)
    if damaged := re.search(r"(manifest|snapshot)_id=(\w+)", text):
        return f"{damaged[1]}s/{damaged[2]} is damaged: {DAMAGED}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """First line of an error of Icechunk, without the frame around it."""
    lines = str(error).strip().splitlines()
    return lines[0].strip(" x×") if lines else type(error).__name__


CODEC_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, EOFError)
"""Errors that codecs raise for damaged bytes."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn errors of storage and codecs about a missing or damaged chunk into Unreadable. Only for calls of zarr."""
    try:
        with decoding(what, CODEC_ERRORS):
            yield
    except icechunk.IcechunkError as error:
        raise Unreadable(f"{what}: {reason(error)}") from error


@contextmanager
def decoding(what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn these errors of codecs into Unreadable."""
    try:
        yield
    except errors as error:
        raise Unreadable(f"{what} is damaged ({first_line(error)}): {DAMAGED}") from error


@contextmanager
def telling(path: Path, what: str) -> Iterator[None]:
    """Turn errors of the storage into an ArchiveError that begins with the path and what failed."""
    try:
        yield
    except Unreadable as error:
        raise ArchiveError(f"{path} {what}: {error}") from error
    except icechunk.IcechunkError as error:
        raise ArchiveError(f"{path} {what}: {reason(error)}") from error


@contextmanager
def telling_system(path: Path, what: str) -> Iterator[None]:
    """As `telling`, for the system's own errors. Do not put a caller's code inside: its files may be others."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{path} {what}: {reason(error)}") from error


def of_system(error: OSError) -> DqmstreamError | None:
    """The error that a command reports for an uncaught error of the system; None if that names no file and no known cause.

    A full, read-only or failing disk is an ArchiveError, whatever file was written. Any other file that cannot be used is an
    InputError.
    """
    place = error.filename or error.filename2
    if error.errno in DISK_ERRORS:
        return ArchiveError(f"{place or 'a file'} cannot be written: {reason(error)}")
    return InputError(f"{place} cannot be used: {reason(error)}") if place else None
