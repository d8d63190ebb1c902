"""The folder of a benchmark: a file for each finished cell, and one for each that failed.

cells/NAME.json     the cell, its lines of history, and where they come from
failed/NAME.json    the cell and its error; gone when the cell is finished
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.benchmark.cells import Cell
from dqmstream.experiments.benchmark.results_table import FILE, read_cells
from dqmstream.experiments.provenance import code_digest
from dqmstream.storage.locks import write_atomically

Record = dict[str, Any]
"""A finished cell as `cells.run_cell` or `results_table.read_cells` gives it, or "cell", "error" and "traceback" of another."""


class Stored:
    """Finished and failed cells below a folder. Raises InputError if it cannot be written."""

    def __init__(self, out: Path) -> None:
        self._finished, self._failed = out / "cells", out / "failed"
        try:
            for folder in (self._finished, self._failed):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}; choose another folder") from error

    def found(self, cells: Collection[Cell], reuse: Sequence[Path] = ()) -> dict[Cell, Record]:
        """Those of the cells that are finished: computed here by the code that runs now, else by any code in a folder of
        `reuse` (a benchmark's own, its cells, or no more of it than results.parquet), the first that has it.

        Raises InputError for a folder of reuse that does not exist, StateError for a file that cannot be read.
        """
        wanted, found = set(cells), dict[Cell, Record]()
        for path in (self._finished / f"{cell.name}.json" for cell in cells):
            if path.exists() and (record := _read(path)) and record["code"] == code_digest():
                found[Cell(**record["cell"])] = record
        for folder in reuse:
            inner, table = folder / "cells", folder / FILE
            if not folder.is_dir():
                raise InputError(f"--reuse {folder}: there is no such folder")
            for path in sorted((inner if inner.is_dir() or table.exists() else folder).glob("*.json")):
                record = _read(path)
                if record and (cell := Cell(**record["cell"])) in wanted and cell not in found:
                    found[cell] = record
            if table.exists():
                found = {cell: record for cell, record in read_cells(table).items() if cell in wanted} | found
        return found

    def save(self, cell: Cell, record: Record) -> None:
        """Write what came of a cell."""
        failed = self._failed / f"{cell.name}.json"
        data = json.dumps(record).encode()
        if "error" in record:
            write_atomically(failed, data)
        else:
            write_atomically(self._finished / f"{cell.name}.json", data)
            failed.unlink(missing_ok=True)


def failure(cell: Cell, error: str, traceback: str = "") -> Record:
    """The record of a cell that failed; error: one line, beginning with its type."""
    return {"cell": asdict(cell), "error": error, "traceback": traceback}


def _read(path: Path) -> Record | None:
    """A finished cell; None for one that failed. Files of older versions say nothing of the code, and less of the libraries."""
    try:
        record = json.loads(path.read_text())
        if "error" in record:
            return None
        if "versions" not in record:
            record["versions"] = {name: record.pop(name) for name in ("dqmstream", "numpy")}
        Cell(**record["cell"])
        return {"code": "", **record, "seconds": float(record["seconds"]), "lines": list(record["lines"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is no cell of a benchmark: {error!r}; delete it, and it is computed again") from error
