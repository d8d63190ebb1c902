"""What a command writes to: a terminal of any width, a pipe that may break, a full disk, a stream that is closed.

`open_streams` replaces the standard streams by ones that print characters they cannot encode as escapes. If standard output
cannot be written they raise OutputError, or OutputClosedError if its reader has gone. Text that standard error cannot take is
lost: there is no place left to report it, and data taking must go on. `tell` prints text and tables and never breaks a number
over two lines.
"""

from __future__ import annotations

import io
import os
import select
import sys
import textwrap
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dqmstream.errors import OutputClosedError, OutputError

_OUT, _ERR = 1, 2
_TEXT_WIDTH, _HEADER_WIDTH = 16, 8
"""Width to which words without a digit may be folded, in the cells and in the head of a table."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal. None is a stream that was closed."""
    return stream is not None and stream.isatty()


def open_streams() -> None:
    """Replace sys.stdout and sys.stderr by streams as described above."""
    for number in (0, _OUT, _ERR):  # a closed number would be that of the next file which is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _stream(_OUT, sys.stdout), _stream(_ERR, sys.stderr)


def _stream(number: int, given: TextIO | None) -> io.TextIOWrapper:
    if given is None:
        return io.TextIOWrapper(io.FileIO(os.devnull, "w"), "utf-8", write_through=True)
    given.flush()
    buffer = io.BufferedWriter(_Descriptor(number))
    return io.TextIOWrapper(
        buffer, given.encoding or "utf-8", "backslashreplace", line_buffering=number == _ERR or given.isatty()
    )


class _Descriptor(io.RawIOBase):
    """Standard output or error by its file descriptor, which is never closed.

    After a write to standard output has failed, later writes are dropped without an error: buffers are flushed once more at
    exit. Writes to standard error are tried each time, since a full disk may have room again.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._failed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        if self._failed:
            return len(data)
        try:
            return os.write(self._number, data)
        except BlockingIOError:  # whoever shares the pipe has set it so
            select.select([], [self._number], [])
            return 0
        except OSError as error:
            if self._number == _ERR:
                return len(data)
            self._failed = True
            if isinstance(error, BrokenPipeError):
                raise OutputClosedError("nobody reads standard output any more") from None
            raise OutputError(
                f"standard output cannot be written: {error.strerror}; what the command did apart from that stands"
            ) from None


def tell(console: Console, part: Any, **style: Any) -> None:
    """Print text or a table. A table that is too wide for a terminal is printed row by row; elsewhere it keeps its width."""
    if not isinstance(part, Table):
        lines = _plain(part).split("\n")
        if console.is_terminal:  # elsewhere a program reads lines as they are
            lines = [piece for line in lines for piece in _wrapped(line, console.width)]
        console.print("\n".join(lines), soft_wrap=True, markup=False, **style)
        return
    widths = _widths(part, console.width)
    if widths is not None:
        for column, width in zip(part.columns, widths, strict=True):
            column.width = width
        console.print(part, markup=False)
    elif console.is_terminal:
        for line in _by_row(part):
            tell(console, line)
    else:
        Console(file=console.file, highlight=False, width=1 << 16).print(part, markup=False)


def _widths(made: Table, width: int) -> list[int] | None:
    """Widths of the columns with which the table fits and no word with a digit is broken; None if it cannot fit."""
    texts = [[_plain(text) for text in (column.header, *column.cells)] for column in made.columns]
    widths = [max([_least(header, _HEADER_WIDTH), *(_least(text, _TEXT_WIDTH) for text in cells)]) for header, *cells in texts]
    wanted = [max(len(line) for text in column for line in text.split("\n")) for column in texts]
    slack = width - sum(widths) - 3 * len(widths) - 1  # of which two are beside each column, and one between
    if slack < 0:
        return None
    by_need = sorted(range(len(widths)), key=lambda place: wanted[place] - widths[place])
    for left, place in zip(range(len(widths), 0, -1), by_need, strict=True):
        more = min(max(wanted[place] - widths[place], 0), slack // left)
        widths[place] += more
        slack -= more
    return widths


def _wrapped(line: str, width: int) -> list[str]:
    """The line wrapped between words; words are never broken."""
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [line]


def _least(text: str, readable: int) -> int:
    """Smallest width of a cell: words with a digit stay whole, others may be folded to `readable` columns."""
    return max((len(word) if any(map(str.isdigit, word)) else min(len(word), readable) for word in text.split()), default=1)


def _by_row(made: Table) -> list[str]:
    """A table as lines: the title, then the cells of each row, one a line; all but the first are indented."""
    names = [_plain(column.header) for column in made.columns]
    lines = [_plain(made.title)] if made.title else []
    for cells in zip(*(column.cells for column in made.columns), strict=True):
        first, *others = [f"{name} {_plain(cell)}".strip() for name, cell in zip(names, cells, strict=True)]
        lines += [first, *(f"  {other}" for other in others)]
    return lines


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
