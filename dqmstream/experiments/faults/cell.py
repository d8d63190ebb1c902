"""A cell of the fault benchmark: one detector on one simulated stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dqmstream.experiments.cells.cell import Record, one_thread
from dqmstream.experiments.faults.detectors import make_detector
from dqmstream.experiments.faults.retest import Retest
from dqmstream.experiments.faults.track import Track
from dqmstream.experiments.provenance import code_digest, made_by
from dqmstream.experiments.simulator import stream
from dqmstream.learners.threads import set_threads

STREAM = "tracks"

_SOURCES = tuple(
    f"experiments/faults/{name}.py"
    for name in ("autodqm", "cell", "detection_metrics", "detectors", "learned", "oracle", "residuals", "retest", "track")
)
"""What the figures depend on besides learners and simulator."""


@dataclass(frozen=True)
class FaultCell:
    """A detector on the stream `tracks`; the seed is that of the stream and of the detector.

    alarms: allowed false alarms per run, of good lumisections and of channels in them. every: a detector is re-tested on the
    conditions of each such run (`retest`), 0 for never.
    """

    detector: str
    seed: int
    runs: int
    lumisections: int
    alarms: float
    every: int

    @property
    def name(self) -> str:
        """Detector and settings, without characters that a file name should not have."""
        shown = self.detector.replace(",", "").replace(" ", "-").lower()
        return f"{shown}-{self.seed}-{self.runs}x{self.lumisections}-{self.alarms:g}-{self.every}"

    @property
    def file(self) -> str:
        return f"cells/{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"cell": asdict(self), "code": code_digest(*_SOURCES)}

    def compute(self) -> Record:
        """Compute the record on one thread: the results of `Track` and, as "replayed", those of `Retest`."""
        set_threads(1)
        with one_thread():
            track = Track(make_detector(self.detector, self.seed), self.alarms)
            retest = Retest(self.seed, self.every or self.runs)
            for index, run in enumerate(stream(STREAM, seed=self.seed, runs=self.runs, lumisections=self.lumisections)):
                track.go_on(run)
                retest.add(index, run, track)
        return {"cell": asdict(self), **track.results(), "replayed": retest.results(), **made_by(*_SOURCES)}
