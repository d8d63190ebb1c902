"""Simulated runs in an archive, for tests of learner, service and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dqmstream.experiments.simulator import write
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files


def simulated_archive(
    folder: Path, stream: str = "moderate", *, seed: int = 1, runs: int = 4, lumisections: int = 200
) -> Archive:
    """An archive of imported simulated runs under folder."""
    write(folder / "simulated", stream, seed, runs, lumisections)
    path = folder / "A"
    import_files([folder / "simulated"], lambda: Archive.open_or_create(path), dtype=np.dtype("float32"), depths=1)
    return Archive.open(path)
