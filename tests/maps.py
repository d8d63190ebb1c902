"""Small occupancy maps and entries for tests of ingest and archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from dqmstream.lumisection import Lumisection, he_depth1_mask
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Entry, Row, make_row

SOURCE = "/ZeroBias/Run2022C#Hcal/DigiTask/Occupancy/depth/depth1"


def lumisection(run: int, number: int, *, seed: int = 0, source: str = SOURCE, n_events: float = 1500.0) -> Lumisection:
    """A lumisection whose counts depend on (run, number, seed) alone."""
    rng = np.random.default_rng((run, number, seed))
    counts = (rng.poisson(300, (64, 72)) * he_depth1_mask()).astype(np.float32)
    return Lumisection(run, number, counts, time_ns=1_650_000_000_000_000_000 + number, n_events=n_events, source=source)


def rows(archive: Archive, run: int, numbers: range, offset: int, *, source: str = SOURCE) -> list[Entry]:
    """Rows of a run's lumisections at consecutive offsets."""
    return [row(archive, run, number, offset + k, source=source) for k, number in enumerate(numbers)]


def row(archive: Archive, run: int, number: int, offset: int, *, seed: int = 0, source: str = SOURCE) -> Row:
    """source: where the archive has none yet."""
    record = lumisection(run, number, seed=seed, source=archive.source or source)
    return make_row(record, offset, archive.geometry, archive.dtype)


def as_sent(archive: Archive, run: int) -> xr.Dataset:
    """The run's view without what is the archive's own: its attributes, and when the rows came and were filed."""
    return archive.run(run).drop_attrs().drop_vars(["produced", "committed"])


def check_tiling(archive: Archive) -> None:
    """Assert that rows and control entries tile [first_offset, next_offset) of every partition, each offset once."""
    for feed, partitions in archive.offsets().items():
        for partition, (first, following) in partitions.items():
            covered = [(int(o), int(o) + 1) for o in archive.index.logs[(feed, partition)].rows["offset"]]
            control = archive.control(feed, partition)
            covered += zip(control["offset"].values.tolist(), control["until"].values.tolist(), strict=True)
            at = first
            for start, until in sorted(covered):
                assert start == at, f"{feed}/{partition}: offset {at} is covered by nothing or twice (next is {start})"
                at = until
            assert at == following


def write_run(folder: Path, run: int, counts: np.ndarray, *, sidecars: bool = True) -> Path:
    """A run in the original layout, with sidecars beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"Run{run}_Dataset_x.npy"
    np.save(path, counts)
    if sidecars:
        np.save(folder / f"Run{run}_events.npy", np.full(len(counts), 1500.0))
        np.save(folder / f"Run{run}_pileup.npy", np.linspace(7, 3, len(counts)))
    return path


def counts(run: int, size: int) -> np.ndarray:
    """Counts of a run as the original files hold them: float64, shape (size, 64, 72)."""
    return np.stack([lumisection(run, k + 1).occupancy for k in range(size)]).astype(np.float64)
