"""A cell of the fault benchmark: one detector on one simulated stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from dqmstream.experiments.cells.cell import Record, SettingsCell, one_thread
from dqmstream.experiments.faults.detectors import make_detector
from dqmstream.experiments.faults.retest import Retest
from dqmstream.experiments.faults.streams import fault_stream
from dqmstream.experiments.faults.track import Track
from dqmstream.experiments.provenance import made_by
from dqmstream.learners.threads import set_threads

_SOURCES = tuple(
    f"experiments/faults/{name}.py"
    for name in (
        "all_depths",
        "autodqm",
        "cell",
        "cost",
        "detection_metrics",
        "detectors",
        "learned",
        "oracle",
        "residuals",
        "retest",
        "streams",
        "track",
    )
)
"""What the figures depend on besides learners and simulator."""


@dataclass(frozen=True)
class FaultCell(SettingsCell):
    """A detector on the stream `tracks`; the seed is that of the stream and of the detector.

    alarms: allowed false alarms per run, of good lumisections and of channels in them. every: a detector is re-tested on the
    conditions of each such run (`retest`), 0 for never. shift: what moves between runs, of `streams.SHIFTS`. depths:
    1 or 7.
    """

    sources: ClassVar[tuple[str, ...]] = _SOURCES

    detector: str
    seed: int
    runs: int
    lumisections: int
    alarms: float
    every: int
    shift: str = "large"
    depths: int = 1

    @property
    def name(self) -> str:
        """Detector and settings, without characters that a file name should not have."""
        shown = self.detector.replace(",", "").replace(" ", "-").lower()
        moved = "" if self.shift == "large" else f"-{self.shift}"
        moved += "" if self.depths == 1 else f"-{self.depths}depths"
        return f"{shown}-{self.seed}-{self.runs}x{self.lumisections}-{self.alarms:g}-{self.every}{moved}"

    def compute(self) -> Record:
        """Compute the record on one thread: the results of `Track` and, as "replayed", those of `Retest`."""
        set_threads(1)
        with one_thread():
            track = Track(make_detector(self.detector, self.seed), self.alarms)
            retest = Retest(self.seed, self.every or self.runs)
            runs = fault_stream(self.shift, seed=self.seed, runs=self.runs, lumisections=self.lumisections, depths=self.depths)
            for index, run in enumerate(runs):
                track.go_on(run)
                retest.add(index, run, track)
        return {"cell": asdict(self), **track.results(), "replayed": retest.results(), **made_by(*_SOURCES)}
