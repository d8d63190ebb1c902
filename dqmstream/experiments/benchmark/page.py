"""The HTML page of a benchmark: its tables over all streams and its figures, from results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqmstream import __version__
from dqmstream.errors import InputError, StateError
from dqmstream.experiments.benchmark.output_files import draw
from dqmstream.experiments.benchmark.text import NOTE, origin, overview, overview_by_last, title
from dqmstream.experiments.page import PageFolder, page_template, picture

_SHOWN = {
    "accuracy": "Accuracy over all runs after the last one, with 95 % intervals; grey: range of guessing.",
    "last": "Accuracy where the last n lumisections name the run by the sum of their log-probabilities, against n.",
    "memory": "Accuracy against the memory for past runs.",
    "cost": "Accuracy against the floating-point operations of all learning.",
}


def write_benchmark_report(benchmark: Path, out: Path) -> Path:
    """Write the page of the benchmark in a folder to `out`; returns the path of its index.html.

    out: a new or empty folder, or that of an older report. Raises InputError if there is no finished benchmark or `out` holds
    files that no report wrote, StateError if results.json is damaged.
    """
    source = benchmark / "results.json"
    try:
        result = json.loads(source.read_text())
    except OSError as error:
        raise InputError(f"{benchmark} holds no finished benchmark: {error.strerror} ({source.name})") from error
    except ValueError as error:
        raise StateError(f"{source} cannot be read: {error}; run `dqmstream benchmark` again") from error
    folder = PageFolder(out)
    tables = [_table(folder, table) for table in result["tables"]]
    page = folder.add("index.html")
    html = page_template("benchmark.html.j2").render(tables=tables, failed=result["failed"], note=NOTE, version=__version__)
    page.write_text(html, encoding="utf-8")
    folder.finish()
    return page


def _table(folder: PageFolder, table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "heading": table["title"] or table["name"],
        "caption": title(table),
        "grids": [_plain(*grid) for grid in (overview(table), overview_by_last(table)) if grid[1]],
        "origin": origin(table),
        "warning": table["warning"],
        "pictures": [picture(path, _SHOWN[path.name.split("-")[0]]) for path in draw(table, folder.add)],
    }


def _plain(columns: list[str], rows: list[list[str]]) -> dict[str, Any]:
    """Columns and rows without the marks of Markdown."""
    return {
        "columns": [column.replace("`", "") for column in columns],
        "rows": [[row[0].replace("`", ""), *row[1:]] for row in rows],
    }
