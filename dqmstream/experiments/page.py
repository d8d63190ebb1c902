"""Pages of HTML: their folder, their pictures, and their templates with the filters for numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dqmstream.errors import InputError
from dqmstream.experiments.figures import shown_size

MANIFEST = ".dqmstream-report"
"""The file that lists, one name a line, what a report wrote into its folder: only these files are ever replaced or removed."""


class PageFolder:
    """The folder of a page and its pictures.

    A file is listed in the manifest before it is written, so that after a crash no file of ours looks like somebody else's.
    Raises InputError if the folder holds files that no report wrote.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._manifest = path / MANIFEST
        self._old = set(self._manifest.read_text().splitlines()) if self._manifest.exists() else set()
        self._new: set[str] = set()
        foreign = sorted({entry.name for entry in path.iterdir()} - self._old - {MANIFEST})
        if foreign:
            raise InputError(f"{path} holds files that no report wrote ({foreign[0]}): give a new folder")

    def add(self, name: str) -> Path:
        """Register a file that is about to be written, and return its path."""
        self._new.add(name)
        self._write_manifest(self._old | self._new)
        return self.path / name

    def finish(self) -> None:
        """Remove the files of an older report that this one did not write again."""
        for name in self._old - self._new:
            (self.path / Path(name).name).unlink(missing_ok=True)
        self._write_manifest(self._new)

    def _write_manifest(self, names: set[str]) -> None:
        self._manifest.write_text("".join(f"{name}\n" for name in sorted(names)))


def picture(file: Path, alt: str) -> dict[str, Any]:
    """A PNG beside the page, for a template: file, alt (what it shows, in words), width and height on the page in pixels."""
    width, height = shown_size(file)
    return {"file": file.name, "alt": alt, "width": width, "height": height}


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with that many decimals; a dash for None, nan and infinity."""
    return "–" if value is None or not math.isfinite(value) else f"{value:z.{digits}f}"


def kilobytes(value: int | None) -> str:
    """Format bytes in kB; a dash for None."""
    return "–" if value is None else f"{value / 1000:.1f}"


def gigaflops(value: float | None) -> str:
    """Format floating-point operations in GFLOP, with three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value / 1e9:.3g}" if value < 1e12 else f"{value / 1e9:.0f}"


def page_template(name: str) -> Template:
    """A template of `experiments/templates`; it may use the filters number, kilobytes and gigaflops."""
    environment = Environment(
        loader=PackageLoader("dqmstream.experiments"),
        autoescape=True,  # names and sources come from messages, which anybody may have sent
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "kilobytes": kilobytes, "gigaflops": gigaflops}
    return environment.get_template(name)
