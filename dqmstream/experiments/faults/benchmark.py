"""The fault benchmark's cells: one detector on one stream, saved as it finishes; what is there is gone on with."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from dqmstream.errors import DqmstreamError, InputError, StateError
from dqmstream.experiments.faults.detectors import NAMES, make_detector
from dqmstream.experiments.faults.replayed import Replayed
from dqmstream.experiments.faults.track import WARM, Track
from dqmstream.experiments.provenance import code_digest, commit, versions
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.streams import named_stream, seed_use
from dqmstream.learners.threads import set_threads
from dqmstream.storage.locks import write_atomically

STREAM = "tracks"
LEAST_LUMISECTIONS = 40

_SOURCES = tuple(
    f"experiments/faults/{name}.py"
    for name in ("autodqm", "detectors", "learned", "measures", "oracle", "replayed", "residuals", "track")
)
"""What the figures of a cell depend on beside what those of every benchmark do."""


@dataclass(frozen=True)
class FaultCell:
    """A detector on the stream `tracks` of a seed, which is the detector's own too.

    alarms: good lumisections that a run may have flagged by chance, and channels of its good lumisections likewise. every: runs
    between two that are had again for the matrix of `replayed`; 0 for none.
    """

    detector: str
    seed: int
    runs: int
    lumisections: int
    alarms: float
    every: int

    @property
    def name(self) -> str:
        shown = self.detector.replace(",", "").replace(" ", "-").lower()
        return f"{shown}-{self.seed}-{self.runs}x{self.lumisections}-{self.alarms:g}-{self.every}"


@dataclass(frozen=True)
class FaultSpec:
    """What the benchmark runs: every detector on every seed's stream."""

    detectors: tuple[str, ...] = NAMES
    seeds: tuple[int, ...] = (100, 101, 102)
    runs: int = named_stream(STREAM).runs
    lumisections: int = named_stream(STREAM).length(0)
    alarms: float = 1.0
    every: int = 6

    def checked(self) -> FaultSpec:
        """The same. Raises InputError for what does not exist or makes no sense, before anything runs."""
        for name in self.detectors:
            make_detector(name, 0)
        seed_use(self.seeds)
        for what, value, least in (
            ("detectors", len(self.detectors), 1),
            ("runs", self.runs, WARM + 3),
            ("lumisections", self.lumisections, LEAST_LUMISECTIONS),
        ):
            if value < least:
                raise InputError(f"the fault benchmark needs {least} {what} at least, not {value}")
        if not 0 < self.alarms <= 20 or self.every < 0:
            raise InputError("alarms a run lie above 0 and up to 20, and runs between two that are had again are 0 or more")
        return self

    def cells(self) -> list[FaultCell]:
        """Every cell, a seed's together."""
        return [
            FaultCell(detector, seed, self.runs, self.lumisections, self.alarms, self.every)
            for seed in self.seeds
            for detector in self.detectors
        ]


def run_cell(cell: FaultCell) -> dict[str, Any]:
    """Compute a cell on one thread: what `Track.results` and `Replayed.results` give, and what it was computed by."""
    set_threads(1)
    with threadpool_limits(1):
        track, replayed = (
            Track(make_detector(cell.detector, cell.seed), cell.alarms),
            Replayed(cell.seed, cell.every or cell.runs),
        )
        for index, run in enumerate(stream(STREAM, seed=cell.seed, runs=cell.runs, lumisections=cell.lumisections)):
            track.go_on(run)
            replayed.add(index, run, track)
    return {"cell": asdict(cell), **track.results(), "replayed": replayed.results(), **_made_by()}


def run_faults(
    spec: FaultSpec, out: Path, *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """Compute what is missing of the cells in so many processes, and return all, in order.

    Cells lie in `out/cells`; those there of the same numbers and code are taken as they are. A cell that failed has "error"
    in place of its figures, and is tried again by the next call. Raises InputError if the folder cannot be written.
    """
    folder, cells = out / "cells", spec.checked().cells()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another folder") from error
    finished = {cell: found for cell in cells if (found := _load(folder, cell)) is not None}
    missing = [cell for cell in cells if cell not in finished]
    progress(len(finished), len(cells))
    if min(workers, len(missing)) == 1:
        for done, cell in enumerate(missing, len(finished) + 1):
            finished[cell] = compute_and_save(folder, cell)
            progress(done, len(cells))
    elif missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=min(workers, len(missing)), mp_context=spawn) as pool:
            running = {pool.submit(compute_and_save, folder, cell): cell for cell in missing}
            for future in as_completed(running):
                finished[running[future]] = future.result()
                progress(len(finished), len(cells))
    return [finished[cell] for cell in cells]


def compute_and_save(folder: Path, cell: FaultCell) -> dict[str, Any]:
    """Compute a cell and write its file; an error is recorded there and does not stop the other cells."""
    try:
        done = run_cell(cell)
    except (DqmstreamError, ArithmeticError, RuntimeError, ValueError, MemoryError) as error:
        done = {"cell": asdict(cell), "error": f"{type(error).__name__}: {error}", **_made_by()}
    write_atomically(folder / f"{cell.name}.json", json.dumps(done).encode())
    return done


def _made_by() -> dict[str, Any]:
    """What a figure comes from; "code" is what it depends on."""
    return {"code": code_digest(*_SOURCES), "commit": commit(), "versions": versions()}


def _load(folder: Path, cell: FaultCell) -> dict[str, Any] | None:
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}; delete it, and it is computed again") from error
    same = found.get("cell") == asdict(cell) and found.get("code") == _made_by()["code"]
    return found if same and "error" not in found else None


def failures(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each cell that failed."""
    return [
        f"failed: {cell['cell']['detector']}, seed {cell['cell']['seed']}: {cell['error']}" for cell in cells if "error" in cell
    ]
