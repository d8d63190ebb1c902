"""Tags that keep the snapshots of a ledger from expiry, so that what a learner has learnt from can be read again."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from dqmstream.errors import ArchiveError
from dqmstream.learners.stream.ledger import Experience
from dqmstream.storage.archive import Archive

log = structlog.get_logger("dqmstream.learner")


class SnapshotTags:
    """The tags of one learner, `<prefix><snapshot>`: one for each snapshot at which a run was frozen."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        """prefix: of this learner's tags only. Tags with the names of an older version keep their snapshots too."""
        self._prefix = prefix
        self._held = {snapshot for name, snapshot in archive.tags().items() if name.startswith(prefix)}

    def hold(self, archive: Archive, lines: Iterable[Experience]) -> None:
        """Tag the snapshots of ledger lines, except those that are left out.

        A snapshot that has expired is logged and is no error: its lumisections are read from a later one
        (`ledger.frozen_view`).
        """
        free: dict[str, set[int]] = {}
        for line in lines:
            if line.left_out or line.snapshot in self._held:
                continue
            if line.snapshot not in free:
                try:
                    archive.at(line.snapshot).tag(f"{self._prefix}{line.snapshot}")
                except ArchiveError:
                    free[line.snapshot] = set()
                else:
                    self._held.add(line.snapshot)
                    continue
            free[line.snapshot].add(line.run)
        if free:
            runs = sorted(set().union(*free.values()))
            log.warning("snapshots of these runs have no tag; where they have expired, the newest one is read", runs=runs)
