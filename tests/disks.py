"""Real disks that are full, read-only or small, for a process of its own: a tmpfs that it alone sees."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount_small(folder: Path, size: int) -> None:
    """Mount an empty disk of so many bytes at folder, seen by this process and its children alone.

    As root, or else as root of a user namespace. Raises OSError where the machine permits neither.
    """
    _call(_libc.unshare(CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER))
    _call(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _call(_libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()))


def remount_read_only(folder: Path) -> None:
    _call(_libc.mount(b"none", str(folder).encode(), None, MS_REMOUNT | MS_RDONLY, None))


class SmallDisk:
    """A disk at folder that can be filled up and made room on.

    Where nothing may be mounted, a limit on the size of files stands in for the full disk, and `is_mounted` is False.
    """

    def __init__(self, folder: Path, size: int = 8 << 20) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        try:
            mount_small(folder, size)
            self.is_mounted = True
        except OSError:
            self.is_mounted = False
        self._ballast = folder / "ballast"

    def fill(self, free: int = 0) -> None:
        """Leave so many bytes free, and no more."""
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (free // 4, resource.RLIM_INFINITY))
            return
        while (size := self._free() - free) > 0:
            with self._ballast.open("ab") as file, suppress(OSError):  # others may have taken the room meanwhile
                os.posix_fallocate(file.fileno(), file.tell(), size)

    def _free(self) -> int:
        left = os.statvfs(self.folder)
        return left.f_bavail * left.f_frsize

    def make_room(self) -> None:
        if self.is_mounted:
            self._ballast.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
