"""Tables in JSON, as pandas, OMS and DIALS write them, as trigger rates by run and path, or as an object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError
from dqmstream.storage.labels.pages import FileTable, Page

NAMES_A_LUMISECTION = re.compile(r"(?<![a-z])(ls|lumi_?section)", re.IGNORECASE)
"""Found in the name of a column with lumisections."""


def read_json(path: Path, data: bytes) -> FileTable:
    """The table in the bytes of the file at path. Raises InputError for bytes that are no table in JSON."""
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
    """Objects, one a line; None if the data are something else."""
    try:
        rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _columns_of(path: Path, given: Any) -> FileTable | None:
    """FileTable of what JSON holds; None where it is no table."""
    if isinstance(given, list):
        return FileTable(path, _by_name(given)) if given and all(isinstance(line, dict) for line in given) else None
    if not isinstance(given, dict) or not given:
        return None
    if {"columns", "data"} <= given.keys():  # pandas, orient="split"
        names, rows = given["columns"], given["data"]
        if not (isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
            return None
        if any(len(row) != len(names) for row in rows):
            return None
        return FileTable(path, {str(name): [row[place] for row in rows] for place, name in enumerate(names)})
    for key in ("data", "results"):
        rows = given.get(key)
        if isinstance(rows, list) and all(isinstance(line, dict) for line in rows):
            if not rows:
                raise InputError(f"{path} holds no line")
            lines = [line["attributes"] if isinstance(line.get("attributes"), dict) else line for line in rows]
            return FileTable(path, _by_name(lines), page=_page(given))
    inner = list(given.values())
    if all(isinstance(column, list) for column in inner):
        return FileTable(path, given)
    if not all(isinstance(column, dict) for column in inner):
        return None
    if (rates := _rates(given)) is not None:
        return FileTable(path, rates)
    if any(isinstance(value, dict | list) for column in inner for value in column.values()):
        return None
    if any(NAMES_A_LUMISECTION.search(str(name)) for name in given):  # pandas, orient="columns": by name, then by row
        rows = list(dict.fromkeys(row for column in inner for row in column))
        return FileTable(path, {name: [column.get(row) for row in rows] for name, column in given.items()})
    return FileTable(path, _by_name(inner))  # pandas, orient="index"


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of lines that are objects; None where a line lacks a name."""
    names = dict.fromkeys(name for line in rows for name in line)
    return {name: [line.get(name) for line in rows] for name in names}


def _rates(given: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]] | None:
    """A line for each rate of `{run: {path: {rate, first_lumisection_number}}}`; None if the object is something else."""
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
    """Page of an answer by `links` and `meta` of OMS, or `next` and `count` of DIALS; None if it has none of them."""
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
    """Address of a link of JSON:API, which is text or an object with `href`."""
    link = link.get("href") if isinstance(link, dict) else link
    return str(link) if link else None
