"""What decides whether, when and in which size a partition's batch may be filed.

A batch may be filed when the archive's source is known (`source_agreement`), and when it is full or has waited long enough.
The last word has the archive: `storage.writer` refuses a batch that does not start where the archive ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dqmstream.storage.entries import Row
from dqmstream.storage.layout import ROWS_PER_CHUNK
from dqmstream.streaming.pending import PendingBatch, names_source
from dqmstream.streaming.source_agreement import SourceAgreement


class FilingRules:
    """The rules for the batches of one feed.

    max_rows: rows of one commit under load. flush_s: longest that a row waits, and the shortest time between two commits of a
    partition that is not under load.
    """

    def __init__(
        self, sources: SourceAgreement, *, max_rows: int, flush_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._max_rows = max_rows
        self._flush_s = flush_s
        self._clock = clock
        self._filed_at: dict[int, float] = {}

    def note_filed(self, partition: int) -> None:
        """A batch of the partition was filed now."""
        self._filed_at[partition] = self._clock()

    def may_be_filed(self, partition: int, batch: PendingBatch, *, more_waits: bool) -> bool:
        """Whether the start of the batch may be filed now. more_waits: whether more messages are there to be sorted."""
        return self.may_be_filed_early(batch) and self.due_at(partition, batch, more_waits) <= self._clock()

    def may_be_filed_early(self, batch: PendingBatch) -> bool:
        """Whether the start of the batch may be filed, if it need not wait for more messages."""
        return bool(batch.entries) and not self._waits_for_source(batch)

    def due_at(self, partition: int, batch: PendingBatch, more_waits: bool) -> float:
        """When to look at a batch with entries again, by the clock."""
        if self._waits_for_source(batch):  # another worker may name the archive's source meanwhile
            return self._sources.asked_at + self._flush_s
        # Entries without rows fill the feed's room as well: it must not be held for flush_s each time.
        if batch.rows >= self._max_rows or len(batch.entries) >= 2 * self._max_rows:
            return float("-inf")
        latest = batch.since + self._flush_s
        # At a detector's own rate a row comes alone: it is filed at once, and the next one waits.
        return latest if more_waits else min(latest, self._filed_at.get(partition, float("-inf")) + self._flush_s)

    def entries_in_commit(self, batch: PendingBatch, rows_in_log: int) -> int:
        """How many entries the next commit has: all, or under load so many that the log ends at a full chunk.

        A chunk that is not full is written again by the next commit. While the archive's source is not known, the commit
        ends before the first row that names one.
        """
        if self._sources.undecided:
            return next((k for k, entry in enumerate(batch.entries) if names_source(entry)), len(batch.entries))
        if batch.rows < self._max_rows:
            return len(batch.entries)
        room = -rows_in_log % ROWS_PER_CHUNK
        rows = min(self._max_rows, room + max(self._max_rows - room, 0) // ROWS_PER_CHUNK * ROWS_PER_CHUNK) or self._max_rows
        for count, entry in enumerate(batch.entries, start=1):
            rows -= isinstance(entry, Row)
            if rows == 0:
                return count
        return len(batch.entries)

    def _waits_for_source(self, batch: PendingBatch) -> bool:
        return self._sources.undecided and names_source(batch.entries[0])
