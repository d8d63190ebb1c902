"""Readers of file layouts by name. A reader registers itself; other packages register theirs by decorator or entry point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from dqmstream.plugins import READERS, Registry
from dqmstream.storage.imports.run_file import RunFile

BUILT_IN = ("arrays", "groups", "dials")
"""Modules of this folder, in the order in which the runs of their files are imported."""


@dataclass(frozen=True)
class ReadRequest:
    """What an import asks of a reader.

    run: number of the run, where the name of the only file does not tell it. depths: of the archive, None where it is new and
    the user gave none. crop: leave out counts beyond |ieta| 32, which are refused otherwise. scratch: folder for large
    temporary files, None for the system's. companions: files given beside those with maps. progress: called with done, total.
    """

    run: int | None = None
    depths: int | None = None
    crop: bool = False
    scratch: Path | None = None
    companions: Sequence[Path] = ()
    progress: Callable[[int, int], None] = lambda done, total: None


class Reader(ABC):
    """A file layout: which files are in it, and which runs they hold.

    needs_run: whether --run may name the run of a single file, since the file does not hold it.
    """

    needs_run = False

    @abstractmethod
    def takes(self, path: Path) -> bool:
        """Whether the file is in this layout, by its name."""

    @abstractmethod
    def read(self, paths: Sequence[Path], request: ReadRequest) -> Sequence[RunFile]:
        """The runs of all files in this layout. Raises InputError, with file and reason, for what cannot be used."""

    def is_companion(self, path: Path) -> bool:
        """Whether the file holds no maps, and is read beside a file that does."""
        return False

    def find(self, folder: Path) -> list[Path]:
        """Files of this layout in subfolders. Files of the folder itself are found by `takes`."""
        return []

    def why_left_out(self, path: Path, is_named: bool) -> str:
        """Why a file of this layout is not read, empty if it is. is_named: the user gave the file itself, not its folder."""
        return ""


ReaderClass = TypeVar("ReaderClass", bound=type[Reader])

_READERS: Registry[type[Reader]] = Registry("reader", READERS, {name: f"{__package__}.{name}" for name in BUILT_IN})


def reader(name: str) -> Callable[[ReaderClass], ReaderClass]:
    """Register a reader under a name, for `dqmstream import`.

    An installed package announces the module with its readers by an entry point of the group `dqmstream.readers`.

    Parameters
    ----------
    name : str
        Name of the layout.

    Returns
    -------
    Callable
        A decorator for a subclass of `Reader`, which is made without arguments.

    Raises
    ------
    ValueError
        If another reader has the name.

    Examples
    --------
    A run as lines of lumisection and counts of a single channel (ieta -20, iphi 1):

    >>> import numpy as np
    >>> import dqmstream as dq
    >>> @dq.reader("lines")
    ... class Lines(dq.Reader):
    ...     def takes(self, path):
    ...         return path.suffix == ".lines"
    ...
    ...     def read(self, paths, request):
    ...         return [self.read_run(path) for path in paths]
    ...
    ...     def read_run(self, path):
    ...         lumisection, counts = np.loadtxt(path, ndmin=2).T
    ...         maps = np.zeros((len(counts), 64, 72))
    ...         maps[:, 12, 0] = counts
    ...         unknown = np.full(len(counts), np.nan)
    ...         return dq.RunFile(path.name, int(path.stem), maps, lumisection.astype(int), unknown, unknown)
    """

    def register(made: ReaderClass) -> ReaderClass:
        _READERS.register(name, made)
        return made

    return register


def readers() -> list[Reader]:
    """All readers in the order in which their runs are imported: built-in ones, then others as they were registered.

    Raises InputError where a package that announces a reader cannot be loaded.
    """
    return [_made(_READERS[name]) for name in _READERS.names()]


@cache
def _made(kind: type[Reader]) -> Reader:
    return kind()


def reader_of(path: Path) -> Reader | None:
    """The reader whose layout the file is in, None if no layout has it. The newest reader is asked first."""
    return next((known for known in reversed(readers()) if known.takes(path)), None)
