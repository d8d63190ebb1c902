"""A title and a few named values as text for a terminal, and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from dqmstream.lumisection import utf8


def as_text(title: str, values: Mapping[str, str]) -> str:
    """The title in angle brackets, and a line for each value."""
    width = max(map(len, values), default=0)
    lines = [f"<{title}>", *(f"  {name:{width}}  {value}" for name, value in values.items())]
    return utf8("\n".join(lines))


def as_html(title: str, values: Mapping[str, str]) -> str:
    """A small table. Title and values may come from files of anybody, and are escaped."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(utf8(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<table><caption>{escape(utf8(title))}</caption>{rows}</table>"
