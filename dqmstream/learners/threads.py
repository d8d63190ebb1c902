"""Thread pools of the numerical libraries, held at one number of threads: the bits of a sum depend on how it is shared out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from threadpoolctl import LibController, ThreadpoolController

log = structlog.get_logger("dqmstream.learner")


class ThreadPools:
    """BLAS, OpenMP and PyTorch, as many threads each, whatever number of cores they see. `release` gives back what was set.

    A library is held from the first `hold` after it was loaded.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._before: dict[str, tuple[LibController, int]] = {}
        self._torch_before: int | None = None
        self.hold()

    def hold(self) -> None:
        """Hold all that are loaded by now."""
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
        """What computes, each with its version, kind of processor and threads: "openblas 0.3.30 Haswell 1"."""
        found = set()
        for library, _ in self._before.values():
            processor = getattr(library, "architecture", None)
            words = (library.internal_api, library.version, processor, library.get_num_threads())
            found.add(" ".join(str(word) for word in words if word is not None))
        torch = sys.modules.get("torch")
        return sorted(found) + ([] if torch is None else [f"torch {torch.__version__} {torch.get_num_threads()}"])

    def release(self) -> None:
        """Set back what was before."""
        if self._torch_before is not None:  # first, since it sets its OpenMP library too
            sys.modules["torch"].set_num_threads(self._torch_before)
        for library, threads in self._before.values():
            library.set_num_threads(threads)
        self._before, self._torch_before = {}, None


@contextmanager
def held_threads(threads: int = 1) -> Iterator[None]:
    """All thread pools at so many threads meanwhile."""
    pools = ThreadPools(threads)
    try:
        yield
    finally:
        pools.release()


def set_threads(threads: int) -> None:
    """Fix the number of PyTorch's CPU threads for good."""
    import torch

    torch.set_num_threads(threads)
