"""Identity of one copy of an archive. All copies contain the same archive id, so it comes from the folder."""

from __future__ import annotations

import ctypes
import os
import struct
from hashlib import sha256
from pathlib import Path

AT_FDCWD, STATX_INO, STATX_BTIME = -100, 0x100, 0x800
"""From linux/fcntl.h and linux/stat.h."""
STATX_SIZE = 256
INO_AT, BTIME_AT = 32, 80
"""Positions in struct statx of the inode's number, and of the seconds and nanoseconds of its birth."""

_libc = ctypes.CDLL(None, use_errno=True)


def copy_id(path: Path) -> str:
    """8 hexadecimal digits that identify the folder at path, and differ for a copy of it.

    They are made of the folder's inode and its time of birth, or of the path if the filesystem keeps no such time. They stay
    the same if the folder is moved within its filesystem, mounted elsewhere (as in a container), or reached by a link. A clone
    of a whole volume has the same digits. Raises OSError if there is no folder.
    """
    path = path.resolve(strict=True)
    answer = ctypes.create_string_buffer(STATX_SIZE)
    if _libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_INO | STATX_BTIME, answer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    (told,) = struct.unpack_from("I", answer, 0)
    if told & STATX_BTIME:
        which = struct.pack("QqI", *struct.unpack_from("Q", answer, INO_AT), *struct.unpack_from("qI", answer, BTIME_AT))
    else:
        which = os.fsencode(path)
    return sha256(which).hexdigest()[:8]
