"""Finished cells of other benchmarks, reused whatever code computed them (`--reuse`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.parquet import FILE, read_cells
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.cells.store import read_record


def reused_records(cells: Collection[BenchmarkCell], folders: Sequence[Path]) -> dict[BenchmarkCell, Record]:
    """Records of the wanted cells in the folders; the first folder that has a cell counts.

    A folder is that of a benchmark, its `cells`, or one with results.parquet alone; a cell's own file goes before that table.
    Raises InputError for a folder that does not exist, StateError for a file that cannot be read.
    """
    wanted, found = set(cells), dict[BenchmarkCell, Record]()
    for folder in folders:
        inner, table = folder / "cells", folder / FILE
        if not folder.is_dir():
            raise InputError(f"--reuse {folder}: there is no such folder")
        for path in sorted((inner if inner.is_dir() or table.exists() else folder).glob("*.json")):
            read = _cell_of(path)
            if read is not None and read[0] in wanted:
                found.setdefault(*read)
        if table.exists():
            found = {cell: record for cell, record in read_cells(table).items() if cell in wanted} | found
    return found


def _cell_of(path: Path) -> tuple[BenchmarkCell, Record] | None:
    """A finished cell and its record; None for one that failed. Older versions wrote no code and fewer libraries."""
    record = read_record(path)
    if "error" in record:
        return None
    try:
        if "versions" not in record:
            record["versions"] = {name: record.pop(name) for name in ("dqmstream", "numpy")}
        cell = BenchmarkCell(**record["cell"])
        return cell, {"code": "", **record, "seconds": float(record["seconds"]), "lines": list(record["lines"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is not a cell of a benchmark: {error!r}; delete it, or leave out --reuse") from error
