"""An Icechunk repository on a local disk: made whole or not at all, and refused where locks keep no two writers apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import icechunk
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage import layout
from dqmstream.storage.failures import first_line
from dqmstream.storage.locks import empty_folder, exclusive, filesystem_kind, sync_filesystem

UNTRUSTED_FILESYSTEMS = frozenset({"nfs", "nfs4", "afs", "cifs", "smb3", "fuse.eosxd", "fuse.eos", "fuse.sshfs", "fuse.cvmfs2"})
"""Network filesystems on which flock is local to a machine, or not there: NFS, AFS, EOS, SMB."""

# Icechunk logs on stdout, which belongs to results; what it logs as an error it raises too.
icechunk.set_logs_filter("off")


def is_repository(path: Path) -> bool:
    """Whether there is a repository at path; it may still be unreadable."""
    return (path / "refs").is_dir()


def make_repository(path: Path, write: Callable[[icechunk.IcechunkStore], None]) -> None:
    """Make a repository at path, a folder that is missing or empty; write fills its first snapshot.

    Raises ArchiveError where something else is there, or where it cannot be made.
    """
    check_local(path)
    try:
        _make(path, write)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be made: {error.strerror or error}") from error


def _make(path: Path, write: Callable[[icechunk.IcechunkStore], None]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with exclusive(partial):
        if path.exists() and any(path.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
            raise ArchiveError(f"{path} is not empty: give the path of a new archive")
        empty_folder(partial)  # of what a process that was killed here had left
        repository = icechunk.Repository.create(_storage(partial), config=layout.repository_config())
        session = repository.writable_session("main")
        write(session.store)
        session.commit("make the archive")
        # Icechunk makes a repository before its first commit; a kill between the two would leave half an archive.
        partial.rename(path)
        sync_filesystem(path)


def open_repository(path: Path) -> tuple[icechunk.Repository, str]:
    """The repository at path, and its newest snapshot. Raises ArchiveError if there is none, or it cannot be read."""
    check_local(path)
    if not is_repository(path):
        raise ArchiveError(f"{path} is no archive: make one with `dqmstream import` or `dqmstream consume`")
    try:
        repository = icechunk.Repository.open(_storage(path), config=layout.repository_config())
        head = repository.lookup_branch("main")
        zarr.open_group(repository.readonly_session(snapshot_id=head).store, mode="r", use_consolidated=False)
    except (icechunk.IcechunkError, OSError, KeyError) as error:
        raise ArchiveError(f"{path} cannot be read as an archive: {first_line(error)}") from error
    return repository, head


def check_local(path: Path) -> None:
    """Raise ArchiveError unless path is, or can become, a folder on a disk of this machine."""
    if "://" in str(path) or ":/" in str(path):
        raise ArchiveError(f"{path} is an address: this version keeps archives on local disks only")
    if path.exists() and not path.is_dir():
        raise ArchiveError(f"{path} is a file, an archive is a folder")
    if (kind := filesystem_kind(path)) in UNTRUSTED_FILESYSTEMS:
        raise ArchiveError(
            f"{path} lies on a network filesystem ({kind}), whose locks cannot be trusted to keep two writers apart: "
            "put the archive on a local disk"
        )


def _storage(path: Path) -> icechunk.Storage:
    return icechunk.local_filesystem_storage(str(path))
