"""Tags that keep the snapshots of a ledger: what a learner was taught from can be opened as long as the learner is kept."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from dqmstream.errors import ArchiveError
from dqmstream.learners.stream.ledger import Experience
from dqmstream.storage.archive import Archive

log = structlog.get_logger("dqmstream.learner")


class SnapshotTags:
    """The tags of one learner, `<prefix><snapshot>`: one for each snapshot, whatever number of runs was frozen at it."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        """prefix: of this learner's tags alone. Tags that an older version named otherwise hold their snapshots as well."""
        self._prefix = prefix
        self._held = {snapshot for name, snapshot in archive.tags().items() if name.startswith(prefix)}

    def hold(self, archive: Archive, lines: Iterable[Experience]) -> None:
        """Tag the snapshots of ledger lines, but of those that were left out.

        One that has expired, or whose tag was removed, is told, and is no error: its lumisections are read from a later one
        where it is gone (`ledger.read_experience`).
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
            log.warning(
                "no tag holds the snapshots of these runs, they are read from the newest one where it is gone", runs=runs
            )
