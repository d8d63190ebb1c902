"""The runs of an archive as a list that prints as a table, also in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from dqmstream.storage.row_index import RunSummary

_COLUMNS: dict[str, Callable[[RunSummary], object]] = {
    "run": lambda run: run.run,
    "lumisections": lambda run: run.lumisections,
    "first": lambda run: run.first_lumisection,
    "last": lambda run: run.last_lumisection,
    "missing": lambda run: run.missing,
    "revisions": lambda run: run.revisions,
    "duplicates": lambda run: run.duplicates,
    "complete": lambda run: run.complete or "no",
}
_SHOWN = 60
"""Largest number of runs that are printed; of more, the first and the last."""


class RunTable(list[RunSummary]):
    """A list of `RunSummary`, in the order in which the runs arrived. `pandas.DataFrame(table)` takes it as it is."""

    def __repr__(self) -> str:
        head, rows = list(_COLUMNS), [[str(cell) for cell in row] for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join([f"<RunTable of {len(self)} runs>", *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f"<table><caption>{len(self)} runs</caption><tr>{head}</tr>{rows}</table>"

    def _rows(self) -> list[list[object]]:
        shown = list(self) if len(self) <= _SHOWN else [*self[: _SHOWN // 2], *self[-_SHOWN // 2 :]]
        rows = [[value(run) for value in _COLUMNS.values()] for run in shown]
        if len(self) > _SHOWN:
            rows.insert(_SHOWN // 2, ["..."] * len(_COLUMNS))
        return rows
