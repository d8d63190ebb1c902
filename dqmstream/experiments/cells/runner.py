"""The runner of cells: computes those that are missing, in this process, in local processes or on a Dask cluster.

Each record is stored as soon as it is computed. An experiment that was stopped continues with the missing cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic

from dqmstream.experiments.cells.cell import C, Cell, Computed, Record, belongs_to, failure, failure_of
from dqmstream.experiments.cells.store import CellStore


@dataclass(frozen=True)
class Workers:
    """Where cells are computed.

    count: local processes of one thread each; 0 for this process. scheduler: address of a Dask scheduler, whose workers are
    used in place of local ones. dashboard: whether local workers serve Dask's page.
    """

    count: int = 0
    scheduler: str | None = None
    dashboard: bool = False


@dataclass(frozen=True)
class Progress(Generic[C]):
    """How far an experiment is.

    workers: how many compute at the moment. left_s: estimate of the seconds left, None if unknown. newest: the cell finished
    last and its record, None at the beginning.
    """

    finished: int
    total: int
    failed: int
    workers: int
    left_s: float | None
    newest: tuple[C, Record] | None


TimeLeft = Callable[[Sequence[C], Mapping[C, Record], int], float | None]
"""Missing cells, finished records and the number of workers to the seconds left."""


def _unknown(missing: Sequence[C], records: Mapping[C, Record], workers: int) -> float | None:
    return None


def run_cells(
    cells: Sequence[C],
    store: CellStore,
    workers: Workers,
    *,
    known: Mapping[C, Record] | None = None,
    keep_going: bool = True,
    time_left: TimeLeft[C] = _unknown,
    progress: Callable[[Progress[C]], None] = lambda progress: None,
) -> dict[C, Record]:
    """Compute the missing cells, store their records, and return the records of all cells in their order.

    known: records from elsewhere, used for cells that the store does not have. keep_going: whether a cell that fails is
    recorded as failed (to be computed again by the next call) and the others are computed; else its error is raised, which is
    possible in this process only.
    """
    found = store.find(cells)
    records = {cell: record for cell in cells if (record := found.get(cell) or (known or {}).get(cell)) is not None}
    missing = [cell for cell in cells if cell not in records]

    def report(newest: tuple[C, Record] | None, count: int) -> None:
        failed = sum("error" in record for record in records.values())
        left = time_left([cell for cell in missing if cell not in records], records, max(count, 1))
        progress(Progress(len(records), len(cells), failed, count, left, newest))

    report(None, max(workers.count, 1))
    if missing:
        with _computing(missing, store, workers, keep_going) as computed:
            for cell, record, count in computed:
                records[cell] = checked(cell, record)
                store.save(cell, records[cell])
                report((cell, records[cell]), count)
    return {cell: records[cell] for cell in cells}


def _computing(
    missing: Sequence[C], store: CellStore, workers: Workers, keep_going: bool
) -> AbstractContextManager[Computed[C]]:
    if not workers.scheduler and not workers.count:
        return nullcontext(in_this_process(missing, keep_going))
    from dqmstream.experiments.cells.dask_workers import local_workers, remote_workers

    if workers.scheduler:
        return remote_workers(missing, workers.scheduler)
    return local_workers(missing, min(workers.count, len(missing)), store.folder / "dask", workers.dashboard)


def in_this_process(cells: Sequence[C], keep_going: bool) -> Computed[C]:
    """Compute the cells one after another. keep_going: as in `run_cells`."""
    for cell in cells:
        try:
            record = cell.compute()
        except Exception as error:
            if not keep_going:
                raise
            record = failure_of(cell, error)
        yield cell, record, 1


def checked(cell: Cell, record: Record) -> Record:
    """The record; a failure in its place where a worker elsewhere runs other code than this process."""
    if "error" in record or belongs_to(cell, record):
        return record
    error = f"StateError: a worker runs another version of dqmstream (commit {record.get('commit') or 'unknown'}): "
    return failure(cell, error + "install the same version on all machines")
