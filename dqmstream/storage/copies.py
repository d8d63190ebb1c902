"""Which copy of an archive a folder is: a copy has the archive's id, and everything else that is written in it."""

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
"""Where struct statx has the inode's number, and the seconds and nanoseconds of its birth."""

_libc = ctypes.CDLL(None, use_errno=True)


def copy_id(path: Path) -> str:
    """8 hexadecimal digits of the folder at path, which a copy of it does not share.

    They stay when the folder is moved within its filesystem, mounted elsewhere, as in a container, or reached by a link:
    they are of its inode and the time at which that was made. Where the filesystem keeps no such time they are of the path.
    A clone of a whole volume shares them. Raises OSError where there is no folder.
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
