"""Style, colours and sizes that all figures of the experiments share. The same numbers give the same bytes of a PNG file.

Figures are made without pyplot: no figure stays registered, and no backend is chosen for the caller.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import mplhep
from matplotlib.figure import Figure

DPI, PAGE_DPI = 150, 100
"""Pixels per inch in the file, and on the page, where one point of type is 1.4 pixels."""

WIDE_IN, HALF_IN = 10.0, 4.95
"""Width of a figure as wide as the page, and of one of two side by side."""

_STYLE = {
    **mplhep.style.CMS,
    "font.size": 11,
    "axes.linewidth": 1,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "xtick.major.size": 5,
    "xtick.minor.size": 2.5,
    "ytick.major.size": 5,
    "ytick.minor.size": 2.5,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.bbox": None,  # the file has the size that the page is told
    "figure.constrained_layout.use": True,
}

# Petroff's ten colours (arXiv:2107.02270), which stay apart for colour-blind readers.
COLOURS = ("#3f90da", "#bd1f01", "#832db6", "#e76300", "#a96b59", "#ffa90e", "#b9ac70", "#92dadd", "#717581", "#94a4a2")
MARKERS = "osD^vPX<>*"


@contextmanager
def canvas(path: Path | None, height_in: float, width_in: float = WIDE_IN) -> Iterator[Figure]:
    """A figure that is written to `path`, if there is one, when the block ends. The style holds inside the block only."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in))
        yield figure
        if path is not None:
            figure.savefig(path, metadata={"Software": None})  # a version in the file would change its bytes


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file on the page, in pixels."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])  # the PNG header
    return width * PAGE_DPI // DPI, height * PAGE_DPI // DPI


def plain(text: str) -> str:
    """Escape a name for Matplotlib, which reads dollars as mathematics and hides legend entries that begin with a `_`."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
