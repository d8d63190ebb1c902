"""Tables as files hold them, and answers of web services that come in pages, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from dqmstream.errors import InputError

_OF_A_PAGE = ("page", "offset", "cursor", "next_token")
"""Beginnings of the parameters of an address that say which page it is."""


@dataclass(frozen=True)
class Page:
    """Page of an answer, by its own words. total: lines in all pages. own, following: addresses of this and the next page."""

    total: int | None
    own: str | None
    following: str | None

    @property
    def answer(self) -> tuple[str, int | None]:
        """What all pages of one answer share: the address without the page, and the number of lines in all pages."""
        parts = urlsplit(self.own or self.following or "")
        asked = sorted((name, value) for name, value in parse_qsl(parts.query) if not name.startswith(_OF_A_PAGE))
        return urlunsplit(parts._replace(query=repr(asked))), self.total


@dataclass(frozen=True)
class FileTable:
    """A table as the file holds it: equally long columns under the file's own names.

    notes: what was left out. page: set if the file may be one page of several.
    """

    path: Path
    values: Mapping[str, Sequence[Any]]
    notes: tuple[str, ...] = ()
    page: Page | None = None


def join_pages(tables: Sequence[FileTable]) -> list[FileTable]:
    """The tables, with the pages of each answer joined. Raises InputError if pages of an answer are missing."""
    joined: list[FileTable] = []
    answers: dict[tuple[str, int | None], list[FileTable]] = {}
    for table in tables:
        if table.page is None:
            joined.append(table)
        else:
            answers.setdefault(table.page.answer, []).append(table)
    return joined + [_joined(parts) for parts in answers.values()]


def _joined(parts: list[FileTable]) -> FileTable:
    """One table of the pages of an answer."""
    path = parts[0].path
    names = dict.fromkeys(name for part in parts for name in part.values)
    rows = [dict(zip(part.values, line, strict=True)) for part in parts for line in zip(*part.values.values(), strict=True)]
    rows = list({repr(line): line for line in rows}.values())  # a page may be given twice
    if not rows:
        raise InputError(f"{path} holds no line")
    pages = [part.page for part in parts if part.page]
    if _is_part(pages, len(rows)):
        held = f"{len(rows)} of {pages[0].total} lines" if pages[0].total is not None else f"{len(rows)} lines"
        which = f"{path} holds" if len(parts) == 1 else f"{path} and {len(parts) - 1} more pages hold"
        raise InputError(
            f"{which} {held} of a longer answer: give all its pages together, --lumi for each, "
            "or ask for more lines a page (OMS: page[limit])"
        )
    if len(parts) > 1:
        path = path.with_name(f"{path.name} and {len(parts) - 1} more")
    values = {name: [line.get(name) for line in rows] for name in names}
    return FileTable(path, values, tuple(note for part in parts for note in part.notes))


def _is_part(pages: Sequence[Page], rows: int) -> bool:
    """Whether these pages, with so many different lines, are only a part of the answer."""
    if (total := pages[0].total) is not None:
        return rows < total
    own = {page.own for page in pages if page.own}
    if not own:
        return all(page.following for page in pages)
    return any(page.following and page.following not in own for page in pages)
