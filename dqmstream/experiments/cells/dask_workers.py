"""Cells computed by Dask: in processes of this machine, or on the workers of a scheduler elsewhere.

No more cells are submitted than there are workers, so a cell that kills its worker takes no other cell with it. Results are
sent back and workers write nothing, so the machines need no shared disk.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import dask.config
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin, wait
from distributed.system import MEMORY_LIMIT

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.cells.cell import C, Cell, Computed, Record, failure_of
from dqmstream.experiments.cells.signals import uninterrupted

RETRIES = 2
"""How often a cell whose worker died is tried again."""

_POLL_S = 1.0
"""Interval at which new workers and a stop are noticed."""

_CONNECT_S = 20.0

_LOCAL = {
    "distributed.scheduler.allowed-failures": RETRIES,
    "distributed.scheduler.no-workers-timeout": "300s",
    # On a busy machine a worker may register late. After this timeout Dask would never accept it.
    "distributed.deploy.lost-worker-timeout": "30 days",
    # A cell's memory cannot be moved to disk, and a paused worker would never resume. A worker that exceeds its share of the
    # memory is ended before the machine runs out.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
}


class _IgnoreSignals(WorkerPlugin):
    """Local workers ignore Ctrl-C and SIGTERM, which a terminal sends to all processes; the parent ends them."""

    def setup(self, worker: Worker) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def local_workers(cells: Sequence[C], workers: int, folder: Path, dashboard: bool = False) -> Iterator[Computed[C]]:
    """Compute cells in new local processes. Arguments as in `local_client`."""
    with local_client(workers, folder, dashboard) as client, closing(sweep(client, cells)) as computed:
        yield computed


@contextmanager
def remote_workers(cells: Sequence[C], address: str) -> Iterator[Computed[C]]:
    """Compute cells on the workers of a scheduler. Raises InputError if none answers at the address."""
    with remote_client(address) as client, closing(sweep(client, cells)) as computed:
        yield computed


@contextmanager
def local_client(workers: int, folder: Path, dashboard: bool = False) -> Iterator[Client]:
    """A client of new local processes of one thread each, which communicate over the loopback interface only.

    folder: for their temporary files, removed at the end. dashboard: whether Dask's page is served, which needs bokeh.
    """
    if dashboard and importlib.util.find_spec("bokeh") is None:
        raise InputError("--dashboard needs the package bokeh, which is not installed: pip install bokeh")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with uninterrupted():
            stack.enter_context(dask.config.set(_LOCAL))
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address=None,
                    scheduler_kwargs={"dashboard": dashboard},
                    local_directory=str(folder),
                    memory_limit=MEMORY_LIMIT // workers,
                    silence_logs="ERROR",
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
            client.register_plugin(_IgnoreSignals())
        yield client


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """A client of a running scheduler. Raises InputError if none answers at the address."""
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}; start one by `dask scheduler`") from error
    with client:
        yield client


def sweep(client: Client, cells: Sequence[C]) -> Computed[C]:
    """Compute cells in about this order; yields each with its record and the number of workers.

    A cell that raises, or whose worker dies at each try, is yielded as failed. Without workers it waits for some. Raises
    StateError if the scheduler is lost.
    """
    waiting, running = list(reversed(cells)), dict[Future, C]()
    # A key that the scheduler knows, from another call or another user of it, would bring that task's result.
    call = uuid.uuid4().hex[:12]
    try:
        while waiting or running:
            with uninterrupted():
                workers = len(client.nthreads())
                while waiting and len(running) < max(workers, 1):
                    cell = waiting.pop()
                    running[client.submit(_compute, cell, key=f"cell-{cell.name}-{call}", pure=False)] = cell
                finished = [(running.pop(future), future) for future in _finished(client, running)]
                for cell, future in finished:
                    yield cell, _record(cell, future), workers
    except OSError as error:
        raise StateError(
            f"connection to the Dask scheduler lost ({error}); finished cells are kept: run the same command again"
        ) from error
    finally:
        client.cancel(list(running))


def _compute(cell: Cell) -> Record:
    return cell.compute()


def _finished(client: Client, running: dict[Future, C]) -> list[Future]:
    try:
        with client.as_current():
            return list(wait(list(running), timeout=_POLL_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _record(cell: Cell, future: Future) -> Record:
    if future.status == "finished":
        record: Record = future.result()
        return record
    if future.status != "error":
        raise OSError(f"a task was {future.status}")
    error: BaseException = future.exception()
    return failure_of(cell, error.with_traceback(future.traceback()))
