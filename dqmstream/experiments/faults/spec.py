"""What the fault benchmark computes: every detector on the streams of every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dqmstream.errors import InputError
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
from dqmstream.experiments.cells.store import CellStore
from dqmstream.experiments.faults.cell import FaultCell
from dqmstream.experiments.faults.detectors import NAMES, make_detector
from dqmstream.experiments.faults.streams import SHIFTS, STREAM
from dqmstream.experiments.faults.track import WARM
from dqmstream.experiments.simulator.depths import DEPTHS
from dqmstream.experiments.simulator.streams import named_stream, seed_use

LEAST_LUMISECTIONS = 40


@dataclass(frozen=True)
class FaultSpec:
    """Detectors, seeds, and the settings of `FaultCell`."""

    detectors: tuple[str, ...] = NAMES
    seeds: tuple[int, ...] = (100, 101, 102)
    runs: int = named_stream(STREAM).runs
    lumisections: int = named_stream(STREAM).length(0)
    alarms: float = 1.0
    every: int = 6
    shift: str = "large"
    depths: int = 1

    def checked(self) -> FaultSpec:
        """The same. Raises InputError for what does not exist or makes no sense, before anything is computed."""
        for name in self.detectors:
            make_detector(name, 0)
        seed_use(self.seeds)
        for what, value, least in (
            ("detectors", len(self.detectors), 1),
            ("runs", self.runs, WARM + 3),
            ("lumisections", self.lumisections, LEAST_LUMISECTIONS),
        ):
            if value < least:
                raise InputError(f"the fault benchmark needs at least {least} {what}, not {value}")
        if not 0 < self.alarms <= 20:
            raise InputError(f"--alarms {self.alarms:g}: give more than 0 and at most 20 false alarms per run")
        if self.every < 0:
            raise InputError(f"--every {self.every}: give a number of runs, or 0 for no re-tests")
        if self.shift not in SHIFTS:
            raise InputError(f"--shift {self.shift}: choose one of {', '.join(SHIFTS)}")
        if self.depths not in (1, DEPTHS):
            raise InputError(f"--depths {self.depths}: give 1 or {DEPTHS}")
        return self

    def cells(self) -> list[FaultCell]:
        """All cells, those of a seed together."""
        return [
            FaultCell(detector, seed, self.runs, self.lumisections, self.alarms, self.every, self.shift, self.depths)
            for seed in self.seeds
            for detector in self.detectors
        ]


def run_faults(
    spec: FaultSpec,
    out: Path,
    workers: Workers,
    progress: Callable[[Progress[FaultCell]], None] = lambda progress: None,
) -> dict[FaultCell, Record]:
    """Compute the missing cells of the fault benchmark; returns the records of all.

    Finished cells of the same code in `out` are reused. A cell that failed is computed again by the next call. Raises
    InputError if the specification makes no sense or the folder cannot be written.
    """
    cells = spec.checked().cells()
    return run_cells(cells, CellStore(out), workers, progress=progress)
