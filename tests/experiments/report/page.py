"""A reader of HTML pages for the tests: what a browser would find, and whether every tag is closed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """What the tests ask of a page: pictures, links, the cells of tables by id, its text, and whether tags are closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.pictures: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._table: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "img":
            self.pictures.append(found)
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id") or f"table {len(self.tables)}", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            self._table[-1][-1] += data + " "
