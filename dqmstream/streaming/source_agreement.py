"""Which dataset and monitoring element a new archive is of, where nobody has said: what many messages agree on.

An archive keeps the source that it once has, and a row of another one becomes a dead letter. So no single message is believed:
a stranger's that came first would turn away all that the archive is for. Rows wait, unfiled and with no offset passed, until
enough of them agree; where many do not, a person must say.

The source that a person gave, or that an archive has, may be wrong for a feed too: a mistyped one would turn every row away. So
while the archive holds no row of a feed, rows of other sources wait until one fits, and where many agree on another source
a person must say.
"""

from __future__ import annotations

from collections.abc import Iterable

from dqmstream.errors import InputError
from dqmstream.storage.writer import Row

AGREEING = 16
"""Lumisections of one source that are enough, six minutes of a run."""

SHARE = 0.75
"""Of all lumisections that name a source."""

ASKED = 4 * AGREEING
"""Lumisections among which so many must agree; more are not waited for."""

ROOM, ROOM_BYTES = 4096, 64 * 2**20
"""Messages of all kinds, and bytes of them, that wait at most for an agreement."""

TOLD_AFTER_S = 30.0
"""How long rows wait before it is told that they do."""

SHOWN, LONGEST = 3, 100
"""Sources in a message, and characters of each."""

GIVE = "give --source, the dataset and monitoring element that this archive is for"


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
    """What is to be done about rows that wait because they are too few to agree; empty where none waits."""
    tally = _tally(rows)
    if not tally:
        return ""
    count = sum(tally.values())
    waiting = "1 lumisection was" if count == 1 else f"{count} lumisections were"
    return (
        f"{waiting} not filed, and will be read again: the archive has no source yet, and it takes {AGREEING} that "
        f"agree on one ({_listed(tally)}): {GIVE}, or let more come"
    )


def stranger_question(rows: Iterable[Row], source: str, archive_is_empty: bool) -> str:
    """What is to be done about rows of which none is of the archive's source; empty where none waits."""
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


def check_strangers(rows: Iterable[Row], source: str, archive_is_empty: bool) -> None:
    """Raise InputError where many rows agree on another source than the archive's, or are many in all. None of them fits."""
    rows = list(rows)
    tally = _tally(rows)
    if max(tally.values(), default=0) >= AGREEING or sum(tally.values()) >= ASKED:
        raise InputError(stranger_question(rows, source, archive_is_empty))


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
