"""The folder of an experiment: a JSON file for each finished cell, and one for each that failed.

CELL.file           the finished record
failed/NAME.json    the error and its traceback; removed when the cell is finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.cells.cell import C, Cell, Record, belongs_to
from dqmstream.storage.locks import write_atomically


class CellStore:
    """Finished and failed cells below a folder, which is created. Raises InputError if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write {folder}: permission denied; choose another folder")

    def find(self, cells: Iterable[C]) -> dict[C, Record]:
        """Records of the cells that were finished by the code that runs now. Raises StateError for a damaged file."""
        found = {}
        for cell in cells:
            path = self.folder / cell.file
            if path.exists() and belongs_to(cell, record := read_record(path)):
                found[cell] = record
        return found

    def save(self, cell: Cell, record: Record) -> None:
        """Write a cell's record at once as a whole: after a crash the file is the old one or the new one."""
        failed = self.folder / "failed" / f"{cell.name}.json"
        path = failed if "error" in record else self.folder / cell.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record).encode())
        if path != failed:
            failed.unlink(missing_ok=True)


def read_record(path: Path) -> Record:
    """The record in a file. Raises StateError if there is none."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}; delete it to compute it again") from error
    if not isinstance(record, dict):
        raise StateError(f"{path} holds no record of a cell; delete it to compute it again")
    return record
