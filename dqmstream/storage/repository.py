"""Making and opening an Icechunk repository on a local disk. A filesystem whose locks do not exclude writers is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import icechunk
import structlog
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage.failures import first_line, telling, telling_system
from dqmstream.storage.locks import exclusive, filesystem_kind, remove, sync_filesystem

UNTRUSTED_FILESYSTEMS = frozenset({
    "nfs", "nfs4", "afs", "cifs", "smb3", "smbfs", "fuse.eosxd", "fuse.eos", "fuse.sshfs", "fuse.cvmfs2",
    "lustre without flock",
})  # fmt: skip
"""Network filesystems without flock, or with one that is local to a machine: NFS, AFS, EOS, SMB, Lustre without `flock`."""

TRUSTED_FILESYSTEMS = frozenset({
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "nilfs2", "bcachefs", "reiserfs", "tmpfs", "ramfs", "overlay",
    "ceph", "fuse.ceph", "fuse.ceph-fuse", "gfs2", "lustre", "",
})  # fmt: skip
"""Disks of one machine, and filesystems whose flock excludes writers on all machines; "" if the system does not tell."""

MANIFEST_SPLIT = 128
"""Chunks of an array in one manifest. A commit rewrites the last manifest of each array and lists all of them."""

PARTIAL = ".partial"
"""Folder inside the archive's, in which the archive is made."""

PARTS = ("chunks", "manifests", "snapshots", "transactions", "refs", "config.yaml")
"""Entries that Icechunk makes in the folder of a repository."""

log = structlog.get_logger("dqmstream.storage")

_warned: set[Path] = set()

# Icechunk logs on stdout, which is for results. It also raises what it logs as an error.
icechunk.set_logs_filter("off")


def is_repository(path: Path) -> bool:
    """Whether there is a repository at path. It may still be unreadable."""
    return (path / "refs").is_dir()


def make_repository(path: Path, write: Callable[[icechunk.IcechunkStore], None]) -> None:
    """Make a repository at path, whole or not at all. write: fills its first snapshot.

    path: a folder that is missing or empty, a mount point, or a link to one of them. Raises ArchiveError if the folder is not
    empty or cannot be written.
    """
    check_local(path)
    warn_of_locks(path)
    place = path.resolve()
    with telling(path, "cannot be made"), telling_system(path, "cannot be made"):
        is_new = not place.exists()
        place.mkdir(parents=True, exist_ok=True)
        with exclusive(place):
            try:
                _make(path, place, write)
            except BaseException:
                shutil.rmtree(place / PARTIAL, ignore_errors=True)
                if is_new and not any(place.iterdir()):
                    place.rmdir()
                raise


def _make(path: Path, place: Path, write: Callable[[icechunk.IcechunkStore], None]) -> None:
    """Make it in a folder inside, since a mount point cannot be replaced, and move its parts up: `refs` makes it complete."""
    partial = place / PARTIAL
    # A process that was killed here may have moved some of the parts.
    ours = (PARTIAL, *(PARTS if partial.exists() and not is_repository(place) else ()))
    if any(entry.name not in (*ours, "lost+found") for entry in place.iterdir()):
        raise ArchiveError(f"{path} is not empty: give the path of a new archive")
    for name in ours:
        remove(place / name)
    partial.mkdir()
    repository = icechunk.Repository.create(_storage(partial), config=_config())
    session = repository.writable_session("main")
    write(session.store)
    session.commit("make the archive")
    # Icechunk makes a repository before its first commit; a kill in between would leave half an archive. So `refs` is last.
    for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "refs"):
        if entry.name == "refs":
            sync_filesystem(place)
        entry.rename(place / entry.name)
    partial.rmdir()
    sync_filesystem(place)


def open_repository(path: Path) -> tuple[icechunk.Repository, str]:
    """The repository at path, and its newest snapshot. Raises ArchiveError if it is missing or cannot be read."""
    check_local(path)
    if not is_repository(path):
        raise ArchiveError(f"{path} is no archive: make one with `dqmstream import` or `dqmstream consume`")
    try:
        repository = icechunk.Repository.open(_storage(path), config=_config())
        head = repository.lookup_branch("main")
        zarr.open_group(repository.readonly_session(snapshot_id=head).store, mode="r", use_consolidated=False)
    except (icechunk.IcechunkError, OSError, KeyError) as error:
        raise ArchiveError(f"{path} cannot be read as an archive: {first_line(error)}") from error
    return repository, head


def check_local(path: Path) -> None:
    """Raise ArchiveError unless path is, or can become, a folder on a filesystem with trusted locks."""
    if "://" in str(path) or ":/" in str(path):
        raise ArchiveError(f"{path} is an address: this version keeps archives on local disks only")
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError until Python 3.12
        raise ArchiveError(f"{path} leads nowhere: it is a link to itself") from error
    if place.exists() and not place.is_dir():
        raise ArchiveError(f"{path} is a file, an archive is a folder")
    if (kind := filesystem_kind(path)) in UNTRUSTED_FILESYSTEMS:
        raise ArchiveError(
            f"{path} lies on a network filesystem ({kind}), whose locks cannot be trusted to keep two writers apart: "
            "put the archive on a local disk"
        )


def warn_of_locks(path: Path) -> None:
    """Warn, once for each path, if it is unknown whether the filesystem's locks exclude writers on other machines."""
    kind = filesystem_kind(path)
    if kind not in TRUSTED_FILESYSTEMS and path not in _warned:
        _warned.add(path)
        log.warning(
            "this filesystem is not known to keep two machines apart that write to a folder: use one machine",
            folder=str(path),
            filesystem=kind,
        )


def _storage(path: Path) -> icechunk.Storage:
    return icechunk.local_filesystem_storage(str(path))


def _config() -> icechunk.RepositoryConfig:
    """Settings of Icechunk that keep the cost of a commit constant as rows grow: split manifests, and none loaded ahead.

    By default Icechunk loads manifests of arrays with names like `time` at the start of each session.
    """
    config = icechunk.RepositoryConfig.default()
    config.manifest = icechunk.ManifestConfig(
        preload=icechunk.ManifestPreloadConfig(max_total_refs=0, preload_if=icechunk.ManifestPreloadCondition.false()),
        splitting=icechunk.ManifestSplittingConfig.from_dict(
            {icechunk.ManifestSplitCondition.AnyArray(): {icechunk.ManifestSplitDimCondition.Axis(0): MANIFEST_SPLIT}}
        ),
    )
    return config
