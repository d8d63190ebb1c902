"""CSV separated by commas, semicolons (then with decimal commas) or tabs, with comment lines, as brilcalc and OMS write it.

Comment lines begin with `#`. brilcalc writes the names of the columns in the last comment before the data.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dqmstream.errors import InputError
from dqmstream.storage.labels.json_tables import NAMES_A_LUMISECTION
from dqmstream.storage.labels.pages import FileTable

_SEPARATORS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"^\s*([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)\s*$")


def read_csv(path: Path, data: bytes) -> FileTable:
    """The table in the bytes of the file at path. Raises InputError for bytes that are no CSV."""
    try:
        lines = data.decode("utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    first = next((place for place, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    names = next((line for line in reversed(lines[:first]) if line.startswith("#") and NAMES_A_LUMISECTION.search(line)), None)
    if names is None or (first < len(lines) and NAMES_A_LUMISECTION.search(lines[first])):
        names, first = (lines[first] if first < len(lines) else ""), first + 1
    separator = max(_SEPARATORS, key=names.count)
    try:
        (header, *_) = [*csv.reader([names.lstrip("#").strip("\r\n")], delimiter=separator, strict=True), []]
        values: list[list[str]] = [[] for _ in header]
        short: list[int] = []
        for number, cells in _records(lines, first, separator):
            if len(cells) != len(header):
                short.append(number)
                continue
            for column, cell in zip(values, cells, strict=True):
                column.append(_with_point(cell) if separator != "," else cell)
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice: {next(name for name in header if header.count(name) > 1)}")
    if short and not any(values):
        raise InputError(f"{path}, line {short[0]} does not have the {len(header)} columns of the first line")
    notes = []
    if short:
        notes.append(f"{len(short)} lines left out, without the {len(header)} columns of the first line (line {short[0]})")
    return FileTable(path, dict(zip(header, values, strict=True)), tuple(notes))


def _records(lines: Sequence[str], first: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the data that begins at lines[first], without comments and empty lines."""
    kept = ((place, line) for place, line in enumerate(lines[first:], start=first + 1) if not line.startswith("#"))
    numbers: list[int] = []

    def counted() -> Iterator[str]:
        for number, line in kept:
            numbers.append(number)
            yield line

    for cells in csv.reader(counted(), delimiter=separator, strict=True):
        if cells:
            yield numbers[-1], cells


def _with_point(cell: str) -> str:
    """The cell with a decimal point in place of a decimal comma."""
    return _DECIMAL_COMMA.sub(r"\1.\2", cell)
