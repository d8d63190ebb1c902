"""Which source (dataset and monitoring element) an archive holds, and whether a feed has lumisections of it.

An archive keeps its first source, and a row of another one becomes a dead letter. A single message must not name it: one
foreign message that came first would turn away everything that the archive is for. So rows wait, unfiled and with no offset
passed, until many name the same source; if many disagree, the operator must name it.

A source that the operator gave, or that the archive has, may be wrong for a feed too: a typing error would turn every row
into a dead letter. So while the archive holds no row of a feed, rows of other sources wait until one fits; if many agree on
another source, the operator must decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog

from dqmstream.errors import InputError
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Row
from dqmstream.streaming.log_limit import LogLimit

log = structlog.get_logger("dqmstream.ingest")

AGREEING = 16
"""Lumisections of one source that are enough: six minutes of a run."""

SHARE = 0.75
"""Share of all lumisections with a source that must name the same one."""

ASKED = 4 * AGREEING
"""Lumisections among which AGREEING must agree; more are not waited for."""

ROOM, ROOM_BYTES = 4096, 64 * 2**20
"""Messages of all kinds, and their bytes, that wait for an agreement at most."""

TOLD_AFTER_S = 30.0
"""How long rows wait before a warning says so."""

SHOWN, LONGEST = 3, 100
"""Sources in a message, and characters of each."""

GIVE = "give --source, the dataset and monitoring element that this archive is for"


class SourceAgreement:
    """Settles the source of an archive for one feed.

    given: the source of an archive that has none yet, empty where the operator named none. accept_others: rows of other
    sources become dead letters even while no row of the archive's source has come. patience_s: without a new message for
    so long, no more rows are waited for.
    """

    def __init__(
        self,
        archive: Archive,
        feed: str,
        *,
        given: str,
        accept_others: bool,
        patience_s: float,
        log_limit: LogLimit,
        clock: Callable[[], float],
    ) -> None:
        self.source = archive.source or given
        """The archive's source as far as it is known, empty while it is not."""
        self.asked_at = 0.0
        """When `settle` last looked at rows."""
        self._archive = archive
        self._feed = feed
        self._accept_others = accept_others
        self._patience_s = patience_s
        self._log_limit = log_limit
        self._clock = clock
        self._fits = bool(self.source) and (accept_others or archive.holds_rows(feed))
        self._undecided_since: float | None = None

    @property
    def confirmed(self) -> str:
        """The source that every further row must have, empty while that is not settled."""
        return self.source if self._fits else ""

    @property
    def undecided(self) -> bool:
        """Whether rows that name a source must wait."""
        return self._undecided_since is not None

    def correct(self, stored: str) -> None:
        """Another worker has named the archive's source."""
        self.source = stored

    def settle(self, rows: Sequence[Row], *, taken_at: float, no_room: bool, no_more: bool, last: bool) -> None:
        """Settle the source by the pending rows that name one, if that is possible.

        taken_at: when the last message came. no_room: no more rows can wait. no_more: none are waited for at present. last:
        none will come later either. Raises InputError where the operator must decide.
        """
        if self._fits or not rows:
            self._undecided_since = None
            return
        self.asked_at = self._clock()
        archive = self._archive.refresh()
        self.source = self.source or archive.source or agreed_source(rows)
        if last:
            self.source = self.source or most_frequent(rows)
        if self.source:
            self._fits = (
                last or self._accept_others or any(row.source == self.source for row in rows) or archive.holds_rows(self._feed)
            )
        if self._fits:
            self._undecided_since = None
            return
        if self._undecided_since is None:
            self._undecided_since = self.asked_at
        if self.source and (no_room or no_more or self.asked_at >= taken_at + self._patience_s):
            check_foreign(rows, self.source, archive.is_empty)
        if no_room:
            raise InputError(self.question(rows))
        if self.asked_at >= self._undecided_since + TOLD_AFTER_S:
            self._log_limit.log(log.warning, "rows wait until the archive's source is known", self.question(rows))

    def question(self, rows: Sequence[Row]) -> str:
        """What the operator can do about the rows that wait, empty where none does."""
        if not self.undecided:
            return ""
        return foreign_question(rows, self.source, self._archive.refresh().is_empty) if self.source else open_question(rows)


def other_source(source: str, archive_source: str) -> str:
    """The reason of a dead letter that names another source than the archive's."""
    return f"the source is {source}, the archive holds {archive_source}"


def agreed_source(rows: Iterable[Row]) -> str:
    """The source that the rows agree on, empty where they are too few. Raises InputError where many do not agree.

    A lumisection that comes twice counts once.
    """
    tally = _tally(rows)
    total = sum(tally.values())
    source, most = max(tally.items(), key=lambda item: item[1], default=("", 0))
    if most >= AGREEING and most >= SHARE * total:
        return source
    if total >= ASKED:
        raise InputError(f"of {total} lumisections too few name the same source ({_listed(tally)}): {GIVE}")
    return ""


def most_frequent(rows: Iterable[Row]) -> str:
    """The source that most of the rows have, empty where none has one."""
    return max(_tally(rows).items(), key=lambda item: item[1], default=("", 0))[0]


def open_question(rows: Iterable[Row]) -> str:
    """What the operator can do about rows that are too few to agree, empty where there are none."""
    tally = _tally(rows)
    if not tally:
        return ""
    count = sum(tally.values())
    waiting = "1 lumisection was" if count == 1 else f"{count} lumisections were"
    return (
        f"{waiting} not filed, and will be read again: the archive has no source yet, and it takes {AGREEING} that "
        f"agree on one ({_listed(tally)}): {GIVE}, or let more come"
    )


def foreign_question(rows: Iterable[Row], source: str, archive_is_empty: bool) -> str:
    """What the operator can do about rows of which none has the archive's source, empty where there are none."""
    tally = _tally(rows)
    if not tally:
        return ""
    if archive_is_empty:
        change = "remove this archive, which holds nothing, and start again with the --source that is meant"
    else:
        change = "read this topic into another archive"
    return (
        f"none of the {sum(tally.values())} lumisections that were read is of the archive's source, {_shown(source)}: there "
        f"are {_listed(tally)}. None was filed, and they will be read again. If {_shown(source)} is wrong, {change}; if it is "
        "right, start again when lumisections of it have come, or give --accept-others, which makes dead letters of all others"
    )


def check_foreign(rows: Iterable[Row], source: str, archive_is_empty: bool) -> None:
    """Raise InputError where many rows agree on another source than the archive's, or are many in all. None of them fits."""
    rows = list(rows)
    tally = _tally(rows)
    if max(tally.values(), default=0) >= AGREEING or sum(tally.values()) >= ASKED:
        raise InputError(foreign_question(rows, source, archive_is_empty))


def _tally(rows: Iterable[Row]) -> dict[str, int]:
    """How many lumisections each source has."""
    seen: dict[str, set[tuple[int, int]]] = {}
    for row in rows:
        if row.source:
            seen.setdefault(row.source, set()).add((row.run, row.lumisection))
    return {source: len(lumisections) for source, lumisections in seen.items()}


def _listed(tally: dict[str, int]) -> str:
    ranked = sorted(tally.items(), key=lambda item: -item[1])
    shown = [f"{count} of {_shown(name)}" for name, count in ranked[:SHOWN]]
    return ", ".join(shown) + (f" and {len(ranked) - SHOWN} sources more" if len(ranked) > SHOWN else "")


def _shown(name: str) -> str:
    return f"{name[:LONGEST]!r}{'...' if len(name) > LONGEST else ''}"
