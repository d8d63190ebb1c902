"""Cells computed by Dask: on processes of this machine, or on whatever workers a scheduler elsewhere has.

No more cells are given out than there are workers, so that one which kills its worker takes no other with it. Results come back
to whoever asked, and workers write nothing: machines need share no disk.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask.config
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin, wait
from distributed.system import MEMORY_LIMIT

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.benchmark.cells import Cell
from dqmstream.experiments.benchmark.store import Record, failure

RETRIES = 2
"""Times that a cell is tried again whose worker died."""

_LOOK_S = 1.0
"""How often new workers, and a stop, are looked for."""

_CONNECT_S = 20.0

_LOCAL = {
    "distributed.scheduler.allowed-failures": RETRIES,
    "distributed.scheduler.no-workers-timeout": "300s",
    # A worker that comes back late, on a busy machine, must still be let in: after that time its place is given up for good.
    "distributed.deploy.lost-worker-timeout": "30 days",
    # A cell holds what it holds: a worker that is paused or moves results to the disk never gets below the mark again. One
    # that takes more than its share of the memory is ended before the machine is.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
}


class _Deaf(WorkerPlugin):
    """A worker of this machine leaves it to whoever started it to heed Ctrl-C and SIGTERM, which a terminal sends to all."""

    def setup(self, worker: Worker) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect at the end of what is inside.

    In the midst of a call they would leave Dask's event loop with an error to print. In another thread than the main one,
    which is sent no signals, there is nothing to put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def local_client(workers: int, folder: Path, dashboard: bool = False) -> Iterator[Client]:
    """A client of so many new processes of one thread each, spoken to over the loopback interface alone.

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
            client.register_plugin(_Deaf())
        yield client


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """A client of a scheduler that runs. Raises InputError if none answers there."""
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}; start one by `dask scheduler`") from error
    with client:
        yield client


def sweep(client: Client, cells: Sequence[Cell], compute: Callable[[Cell], Record]) -> Iterator[tuple[Cell, Record, int]]:
    """Compute cells, in this order as far as workers are there; yields each with what came of it, and the number of workers.

    A cell whose computation raises, or whose worker dies each time it is tried, is yielded as failed. A machine without
    workers is waited for. Raises StateError when the scheduler is lost.
    """
    waiting, running = list(reversed(cells)), dict[Future, Cell]()
    try:
        while waiting or running:
            with uninterrupted():
                workers = len(client.nthreads())
                while waiting and len(running) < max(workers, 1):
                    cell = waiting.pop()
                    running[client.submit(compute, cell, key=f"cell-{cell.name}", pure=False)] = cell
                finished = [(running.pop(future), future) for future in _finished(client, running)]
                for cell, future in finished:
                    yield cell, _record(cell, future), workers
    except OSError as error:
        raise StateError(f"the Dask scheduler is lost ({error}); finished cells are kept: give the command again") from error
    finally:
        client.cancel(list(running))


def _finished(client: Client, running: dict[Future, Cell]) -> list[Future]:
    try:
        with client.as_current():
            return list(wait(list(running), timeout=_LOOK_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _record(cell: Cell, future: Future) -> Record:
    if future.status == "finished":
        record: Record = future.result()
        return record
    if future.status != "error":
        raise OSError(f"a task was {future.status}")
    error: BaseException = future.exception()
    where = traceback.format_list(traceback.extract_tb(future.traceback()))
    return failure(cell, traceback.format_exception_only(error)[-1].strip(), "".join(where))
