"""Files of tables as named columns: CSV, JSON or Parquet, as OMS, brilcalc, trigger rates and pandas write them.

CSV may be compressed (.gz), separated by commas, semicolons (then with decimal commas) or tabs, and have comment lines that
start with `#`; brilcalc's names are the last of those before the data. JSON may be a list of objects, an object of lists, any
form of `pandas.DataFrame.to_json` that keeps names, an object a line, HLT rates by run and path, or an answer of OMS.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from dqmstream.errors import InputError

MAX_BYTES = 1 << 29
"""Of a table, once it is decompressed: a year of lumisections is half of it."""

MAX_LINES = 1 << 22
"""Of a table in Parquet, 4 million, where a year has 1.4 million lumisections: a few kilobytes can claim any number."""

_SEPARATORS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"^\s*([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)\s*$")
_OF_A_PAGE = ("page", "offset", "cursor", "next_token")
_NAMES_A_LUMISECTION = re.compile(r"(?<![a-z])(ls|lumi_?section)", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """What an answer that comes in pages says of itself. total: lines in all pages. own, following: addresses of pages."""

    total: int | None
    own: str | None
    following: str | None

    @property
    def answer(self) -> tuple[str, int | None]:
        """What the pages of one answer share: the address without the page, and the number of rows in all of them."""
        parts = urlsplit(self.own or self.following or "")
        asked = sorted((name, value) for name, value in parse_qsl(parts.query) if not name.startswith(_OF_A_PAGE))
        return urlunsplit(parts._replace(query=repr(asked))), self.total


@dataclass(frozen=True)
class Columns:
    """Equally long columns under the file's own names. notes: what was left out. page: where it may be one page of several."""

    path: Path
    values: Mapping[str, Sequence[Any]]
    notes: tuple[str, ...] = ()
    page: Page | None = None


def read_columns(path: Path) -> Columns:
    """The table at path. Raises InputError, with the file's name and the reason, for what cannot be used."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    readers = {".csv": _csv, ".json": _json, ".jsonl": _json}
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet(path)
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise InputError(f"{path} is no table: give .csv, .json or .parquet, the first two also as .gz")
    return readers[suffix](path, _bytes(path))


def join_pages(tables: Sequence[Columns]) -> list[Columns]:
    """The tables, with the pages of an answer joined to one. Raises InputError where pages of it are missing."""
    joined: list[Columns] = []
    answers: dict[tuple[str, int | None], list[Columns]] = {}
    for table in tables:
        if table.page is None:
            joined.append(table)
        else:
            answers.setdefault(table.page.answer, []).append(table)
    return joined + [_joined(parts) for parts in answers.values()]


def _joined(parts: list[Columns]) -> Columns:
    path = parts[0].path
    names = dict.fromkeys(name for part in parts for name in part.values)
    rows = [dict(zip(part.values, line, strict=True)) for part in parts for line in zip(*part.values.values(), strict=True)]
    rows = list({repr(line): line for line in rows}.values())  # a page that is given twice counts once
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
    return Columns(path, values, tuple(note for part in parts for note in part.notes))


def _is_part(pages: Sequence[Page], rows: int) -> bool:
    """Whether pages with so many different lines are not all of an answer."""
    if (total := pages[0].total) is not None:
        return rows < total
    own = {page.own for page in pages if page.own}
    if not own:
        return all(page.following for page in pages)
    return any(page.following and page.following not in own for page in pages)


def _bytes(path: Path) -> bytes:
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as plain:
                data = plain.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} holds more than {MAX_BYTES >> 20} MiB: give it in parts")
    return data


def _csv(path: Path, data: bytes) -> Columns:
    try:
        lines = data.decode("utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    first = next((place for place, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    names = next((line for line in reversed(lines[:first]) if line.startswith("#") and _NAMES_A_LUMISECTION.search(line)), None)
    if names is None or (first < len(lines) and _NAMES_A_LUMISECTION.search(lines[first])):
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
    return Columns(path, dict(zip(header, values, strict=True)), tuple(notes))


def _records(lines: Sequence[str], first: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, cells) of the data that starts at lines[first], without comments and empty lines."""
    kept = ((place, line) for place, line in enumerate(lines[first:], start=first + 1) if not line.startswith("#"))
    numbers: list[int] = []

    def told() -> Iterator[str]:
        for number, line in kept:
            numbers.append(number)
            yield line

    for cells in csv.reader(told(), delimiter=separator, strict=True):
        if cells:
            yield numbers[-1], cells


def _with_point(cell: str) -> str:
    """A number with a decimal comma as one with a point."""
    return _DECIMAL_COMMA.sub(r"\1.\2", cell)


def _json(path: Path, data: bytes) -> Columns:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        given = _json_lines(data)
        if given is None:
            raise InputError(f"{path} cannot be read as JSON: {error}") from error
    table = _columns_of(path, given)
    if table is None:
        raise InputError(
            f"{path} is no table: give a list of objects, an object of lists, the answer of OMS, HLT rates by run and path, "
            "or what pandas writes with column names"
        )
    if len({len(column) for column in table.values.values()}) > 1:
        raise InputError(f"{path}: its columns are not equally long")
    return table


def _json_lines(data: bytes) -> list[dict[str, Any]] | None:
    """Objects of which each has a line; None where it is something else."""
    try:
        rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _columns_of(path: Path, given: Any) -> Columns | None:
    """Columns of what JSON holds; None where it is no table."""
    if isinstance(given, list):
        return Columns(path, _by_name(given)) if given and all(isinstance(line, dict) for line in given) else None
    if not isinstance(given, dict) or not given:
        return None
    if {"columns", "data"} <= given.keys():  # pandas, orient="split"
        names, rows = given["columns"], given["data"]
        if not (isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
            return None
        if any(len(row) != len(names) for row in rows):
            return None
        return Columns(path, {str(name): [row[place] for row in rows] for place, name in enumerate(names)})
    for key in ("data", "results"):
        rows = given.get(key)
        if isinstance(rows, list) and all(isinstance(line, dict) for line in rows):
            if not rows:
                raise InputError(f"{path} holds no line")
            lines = [line["attributes"] if isinstance(line.get("attributes"), dict) else line for line in rows]
            return Columns(path, _by_name(lines), page=_page(given))
    inner = list(given.values())
    if all(isinstance(column, list) for column in inner):
        return Columns(path, given)
    if not all(isinstance(column, dict) for column in inner):
        return None
    if (rates := _rates(given)) is not None:
        return Columns(path, rates)
    if any(isinstance(value, dict | list) for column in inner for value in column.values()):
        return None
    if any(_NAMES_A_LUMISECTION.search(str(name)) for name in given):  # pandas, orient="columns": by name, then by row
        rows = list(dict.fromkeys(row for column in inner for row in column))
        return Columns(path, {name: [column.get(row) for row in rows] for name, column in given.items()})
    return Columns(path, _by_name(inner))  # pandas, orient="index"


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for line in rows for name in line)
    return {name: [line.get(name) for line in rows] for name in names}


def _rates(given: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]] | None:
    """Rates as `{run: {path: {rate, first_lumisection_number}}}`, a line for each; None where it is something else."""
    paths = [(run, name, one) for run, by_path in given.items() for name, one in by_path.items()]
    numbered = "first_lumisection_number"
    if not paths or not all(
        isinstance(one, dict) and isinstance(one.get("rate"), list) and isinstance(one.get(numbered), list)
        for _, _, one in paths
    ):
        return None
    made: dict[str, list[Any]] = {name: [] for name in ("run_number", "path_name", numbered, "rate")}
    for run, name, one in paths:
        size = min(len(one["rate"]), len(one[numbered]))
        made["run_number"] += [run] * size
        made["path_name"] += [name] * size
        made[numbered] += one[numbered][:size]
        made["rate"] += one["rate"][:size]
    return made


def _page(given: Mapping[str, Any]) -> Page | None:
    """What `links` and `meta` of OMS (or `next`, `previous` and `count` of DIALS) say; None where there are none."""
    links, meta = given.get("links"), given.get("meta")
    links = links if isinstance(links, dict) else {}
    total = meta.get("totalResourceCount") if isinstance(meta, dict) else given.get("count")
    following = links.get("next", given.get("next"))
    page = Page(
        total if isinstance(total, int) and not isinstance(total, bool) else None,
        _address(links.get("self")),
        _address(following),
    )
    return None if page.total is None and page.following is None and page.own is None else page


def _address(link: Any) -> str | None:
    """The address of a link of JSON:API, which may be an object that holds it."""
    link = link.get("href") if isinstance(link, dict) else link
    return str(link) if link else None


def _parquet(path: Path) -> Columns:
    """The columns, of which nested ones are not read: each of their values is what kind they are."""
    import pyarrow as pa

    from dqmstream.storage.imports.nested_lists import batches, open_parquet

    schema = open_parquet(path).schema_arrow
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    file = open_parquet(path, coded=texts)
    if file.metadata.num_rows > MAX_LINES:
        raise InputError(f"{path} has {file.metadata.num_rows} lines, and no more than {MAX_LINES} are taken: give it in parts")
    flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
    values: dict[str, list[Any]] = {name: [] for name in flat}
    for batch in batches(path, file, flat, 1 << 16):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type):  # a text that is in many lines is held once
                told = [*column.dictionary.to_pylist(), None]
                values[name] += [told[place] for place in column.indices.fill_null(len(told) - 1).to_pylist()]
            else:
                values[name] += column.to_pylist()
    nested = {name: [str(schema.field(name).type)] * file.metadata.num_rows for name in schema.names if name not in values}
    return Columns(path, {name: values[name] if name in values else nested[name] for name in schema.names})
