"""Commits to a repository on a local disk, one after another. All writers of an archive use them.

    lock -> check the clock -> sync the newest snapshot -> session -> commit -> sync, or withdraw the commit

Any commit that is visible is on the disk, or its writer still holds the lock. If the disk fails to take a commit, it is
withdrawn, and the next writer files its contents again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import icechunk
import structlog
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.lumisection import utf8
from dqmstream.storage import clock
from dqmstream.storage.failures import reason, telling
from dqmstream.storage.locks import Lock, exclusive
from dqmstream.storage.repository import warn_of_locks

log = structlog.get_logger("dqmstream.storage")


class Commits:
    """Makes commits to the branch `main` of the repository at path, while other processes wait for their turn."""

    def __init__(self, path: Path, repository: icechunk.Repository) -> None:
        self._path = path
        self._repository = repository
        self._on_disk = ""
        warn_of_locks(path)

    @contextmanager
    def begin(self) -> Iterator[Change]:
        """Hold the lock, with a session at the newest snapshot. Changes that are not committed inside are dropped.

        Raises ArchiveError if the storage cannot be read or written.
        """
        with exclusive(self._path) as lock, telling(self._path, "cannot be written"):
            self._repository = clock.settle(self._path, self._repository)
            head = self._repository.lookup_branch("main")
            if head != self._on_disk:  # another process may have ended between its commit and its sync
                self._sync(lock)
                self._on_disk = head
            yield Change(self, lock, self._repository.writable_session("main"))

    def _sync(self, lock: Lock) -> None:
        try:
            lock.sync()
        except OSError as error:
            raise ArchiveError(f"{self._path} is not on the disk: {reason(error)}") from error

    def _commit(self, lock: Lock, session: icechunk.Session, message: str, landed: Callable[[zarr.Group], bool]) -> str:
        parent = session.snapshot_id
        snapshot = self._make(session, message, landed)
        self._sync_or_withdraw(lock, parent)
        self._on_disk = snapshot
        return snapshot

    def _make(self, session: icechunk.Session, message: str, landed: Callable[[zarr.Group], bool]) -> str:
        parent = session.snapshot_id
        while True:
            try:
                return str(session.commit(message, rebase_with=icechunk.ConflictDetector()))
            except icechunk.IcechunkError as error:
                # A commit can land and still raise, so the head decides. Nobody else can have moved it under the lock.
                head = self._repository.lookup_branch("main")
                if head != parent and landed(_root(self._repository.readonly_session(snapshot_id=head))):
                    return str(head)
                if clock.lead_s(self._repository, parent) >= 0:
                    clock.wait(self._repository, parent)
                    continue
                raise ArchiveError(f"{self._path}: the commit failed, nothing was filed: {reason(error)}") from error

    def rewrite_manifests(self) -> None:
        """Commit the newest snapshot again with rewritten manifests, and no other change."""
        with exclusive(self._path) as lock, telling(self._path, "cannot be compacted, nothing was changed"):
            self._repository = clock.settle(self._path, self._repository)
            parent = self._repository.lookup_branch("main")
            self._on_disk = self._repository.rewrite_manifests("compact", branch="main")
            self._sync_or_withdraw(lock, parent)

    def _sync_or_withdraw(self, lock: Lock, parent: str) -> None:
        """Sync the commit to the disk, or withdraw it: nobody must build on a commit that may be lost."""
        try:
            self._sync(lock)
        except ArchiveError:
            try:
                self._repository.reset_branch("main", parent)
            except icechunk.IcechunkError as error:
                log.error("a commit that may not be on the disk could not be withdrawn", reason=reason(error))
            raise


class Change:
    """A session that becomes a commit. root: its root group, to be read and written."""

    def __init__(self, commits: Commits, lock: Lock, session: icechunk.Session) -> None:
        self._commits = commits
        self._lock = lock
        self._session = session
        self.root = _root(session, "r+")

    @property
    def parent(self) -> str:
        """The snapshot that is changed."""
        return str(self._session.snapshot_id)

    def commit(self, message: str, landed: Callable[[zarr.Group], bool]) -> str:
        """Commit and sync to the disk. Returns the snapshot.

        landed: whether the root group of a snapshot holds the change. Raises ArchiveError, with nothing filed, if that fails;
        ClockSetBack if the caller can repeat the change at once.
        """
        return self._commits._commit(self._lock, self._session, utf8(message), landed)

    def go_on(self) -> None:
        """Begin a new session on the commit that was just made, with the lock still held."""
        self._session = self._commits._repository.writable_session("main")
        self.root = _root(self._session, "r+")


def _root(session: icechunk.Session, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    return zarr.open_group(session.store, mode=mode, use_consolidated=False)
