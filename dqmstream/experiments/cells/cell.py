"""The protocol of a cell: one unit of work of an experiment, such as a strategy on a simulated stream."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar, Protocol, TypeVar, cast

from threadpoolctl import threadpool_limits

from dqmstream.experiments.provenance import code_digest

Record = dict[str, Any]
"""What a cell's computation gave, ready for JSON. A failed cell has "error" and "traceback" in place of its figures."""


class Cell(Protocol):
    """One unit of work. Cells are hashable; equal cells have the same figures."""

    @property
    def name(self) -> str:
        """Name of its task and of its files; no two cells of an experiment share one."""
        ...

    @property
    def file(self) -> str:
        """Path of the finished record below the folder of the experiment."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Entries of its record by which it is recognised, for instance its settings and the digest of the code.

        A stored record is reused only where it has the same entries.
        """
        ...

    def compute(self) -> Record:
        """Compute the record, in whatever process this is called. May raise any exception."""
        ...


class SettingsCell(ABC):
    """Base of the cells that are a dataclass of settings: finished records are recognised by these and by the code.

    sources: files or folders below the package, beside learners and simulator, that the figures depend on.
    """

    sources: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def name(self) -> str:
        """As in `Cell`."""

    @property
    def file(self) -> str:
        return f"cells/{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"cell": asdict(cast(Any, self)), "code": code_digest(*self.sources)}


C = TypeVar("C", bound=Cell)

Computed = Generator[tuple[C, Record, int], None, None]
"""Cells as they are computed, each with its record and the number of workers."""


def failure(cell: Cell, error: str, frames: str = "") -> Record:
    """The record of a cell that failed. error: one line that begins with the exception's type. frames: where it was raised."""
    return {**cell.identity, "error": error, "traceback": frames}


def failure_of(cell: Cell, error: BaseException) -> Record:
    """The record of a cell whose computation raised this error."""
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
    return failure(cell, traceback.format_exception_only(error)[-1].strip(), "".join(frames))


def belongs_to(cell: Cell, record: Record) -> bool:
    """Whether a finished record is that of this cell, computed by the code that runs now."""
    return "error" not in record and all(record.get(name) == value for name, value in cell.identity.items())


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread; cells in several threads of one process wait for each other.

    PyTorch has one state of random numbers per process, which cells side by side would mix.
    """
    with _ONE_AT_A_TIME, threadpool_limits(1):
        yield
