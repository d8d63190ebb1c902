"""Fixed numbers of threads for the numerical libraries: the bits of a sum depend on how it is divided among threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from threadpoolctl import LibController, ThreadpoolController

log = structlog.get_logger("dqmstream.learner")


class ThreadPools:
    """Sets BLAS, OpenMP and PyTorch to a number of threads, whatever the number of cores, until `release`.

    A library that is loaded later is set by the next `hold`.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._before: dict[str, tuple[LibController, int]] = {}
        self._torch_before: int | None = None
        self.hold()

    def hold(self) -> None:
        """Set all libraries that are loaded by now."""
        for library in ThreadpoolController().lib_controllers:
            if library.filepath not in self._before:
                self._before[library.filepath] = library, library.get_num_threads()
            library.set_num_threads(self.threads)
            if library.get_num_threads() not in (self.threads, None):
                log.warning("a library keeps another number of threads", library=library.filepath, asked=self.threads)
        torch = sys.modules.get("torch")
        if torch is not None:
            if self._torch_before is None:
                self._torch_before = torch.get_num_threads()
            torch.set_num_threads(self.threads)

    def used(self) -> list[str]:
        """The libraries, each with version, kind of processor and number of threads: "openblas 0.3.30 Haswell 1"."""
        found = set()
        for library, _ in self._before.values():
            processor = getattr(library, "architecture", None)
            words = (library.internal_api, library.version, processor, library.get_num_threads())
            found.add(" ".join(str(word) for word in words if word is not None))
        torch = sys.modules.get("torch")
        return sorted(found) + ([] if torch is None else [f"torch {torch.__version__} {torch.get_num_threads()}"])

    def release(self) -> None:
        """Restore the numbers of threads from before."""
        if self._torch_before is not None:  # first, since this sets its OpenMP library too
            sys.modules["torch"].set_num_threads(self._torch_before)
        for library, threads in self._before.values():
            library.set_num_threads(threads)
        self._before, self._torch_before = {}, None


@contextmanager
def held_threads(threads: int = 1) -> Iterator[None]:
    """Context in which all libraries use this number of threads."""
    pools = ThreadPools(threads)
    try:
        yield
    finally:
        pools.release()


def set_threads(threads: int) -> None:
    """Set the number of PyTorch's CPU threads for the rest of the process."""
    import torch

    torch.set_num_threads(threads)
