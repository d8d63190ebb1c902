"""A detector on a stream whose faults are known: each run is scored before it is learnt, with thresholds from past data.

The detector sees the counts of a run, not its faults. After scoring it learns the good lumisections, as certification would
give them, and their scores are added to the held-out ones from which the thresholds come. The first run is the reference and is
not scored; the next `WARM` runs give the first thresholds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np

from dqmstream.experiments.faults.detection_metrics import Delays, HeldOut, Tally, agreement
from dqmstream.experiments.faults.detectors import Detector
from dqmstream.experiments.faults.oracle import Oracle
from dqmstream.experiments.simulator import SimulatedRun
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.experiments.simulator.streams import Kind
from dqmstream.learners.monitoring.fault_filter import Suspicion

ALL = "all"
KINDS: tuple[str, ...] = (*get_args(Kind), ALL)
WARM = 5
"""Number of scored runs that give the first thresholds and are not measured."""


@dataclass
class _Measured:
    """Scores and counts of the measured runs, a list entry per run."""

    runs: list[int] = field(default_factory=list)
    good: list[np.ndarray] = field(default_factory=list)
    good_channels: list[np.ndarray] = field(default_factory=list)
    faulty: dict[str, list[np.ndarray]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    faulty_channels: dict[str, list[np.ndarray]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    named: dict[str, list[list[float]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    flagged: dict[str, list[list[int]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    alarms: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"look": 0.0, "learn": 0.0})
    looked: int = 0


class Track:
    """A detector that goes through a stream."""

    def __init__(self, detector: Detector | Oracle, alarms_per_run: float = 1.0) -> None:
        """alarms_per_run: allowed false alarms per run, of good lumisections and of good channels in lumisections."""
        self.detector = detector
        self.lumisections = HeldOut(alarms_per_run)
        self.channels = HeldOut(alarms_per_run)
        self._kept, self._delays = _Measured(), Delays()
        self._runs = self._first = 0

    def go_on(self, run: SimulatedRun) -> None:
        """Score the next run, then learn it."""
        if self._runs:
            began = time.process_time()
            seen = self.look(run)
            self._kept.seconds["look"] += time.process_time() - began
            self._kept.looked += len(run.counts)
            if self._runs > WARM:
                self._measure(run, seen)
            good = ~run.faulty
            share = float(good.mean())
            self.lumisections.add(seen.score[good], share)
            self.channels.add(seen.channels[good].ravel(), share)
        if not isinstance(self.detector, Oracle):
            began = time.process_time()
            self.detector.learn(as_maps(run).take(np.flatnonzero(~run.faulty)))
            self._kept.seconds["learn"] += time.process_time() - began
        self._runs += 1
        self._first += len(run.counts)

    def look(self, run: SimulatedRun) -> Suspicion:
        """The detector's scores of a run, for all of its channels (932 in HE depth 1). Nothing is kept."""
        seen = self.detector.of(run) if isinstance(self.detector, Oracle) else self.detector.look(as_maps(run))
        on_map = np.full((len(seen.score), *self.detector.live.shape), -np.inf, dtype=np.float32)
        on_map[:, self.detector.live] = seen.channels
        return Suspicion(seen.score.astype(np.float32), on_map[:, run.live.reshape(self.detector.live.shape)])

    def _measure(self, run: SimulatedRun, seen: Suspicion) -> None:
        kept, acts = self._kept, _acting(run)
        flagged, named = seen.score > self.lumisections.threshold, seen.channels > self.channels.threshold
        beside = np.sum([fault.active for fault in run.faults], axis=0) if run.faults else np.zeros(len(run.counts))
        true = run.faulty_channels()[:, run.live]
        on_channel = np.sum(list(acts.values()), axis=0) if acts else np.zeros(true.shape)
        good = ~run.faulty
        place = len(kept.runs)
        kept.runs.append(run.run)
        kept.good.append(seen.score[good])
        kept.good_channels.append(seen.channels[~true])
        kept.alarms.append([float(good.mean()), int(flagged[good].sum()), int(named[good].sum())])
        for kind in KINDS:
            if kind == ALL:
                alone, alone_channels = run.faulty, true
            else:
                mine = [fault.active for fault in run.faults if fault.kind == kind]
                alone = (np.any(mine, axis=0) & (beside == 1)) if mine else np.zeros(len(good), dtype=bool)
                alone_channels = (acts[kind] == 1) & (on_channel == 1) if kind in acts else np.zeros(true.shape, dtype=bool)
            kept.faulty[kind].append(seen.score[alone])
            kept.faulty_channels[kind].append(seen.channels[alone_channels])
            found = agreement(named[alone], true[alone])
            kept.named[kind].append([int(alone.sum()), *found.sum(axis=0).tolist()])
            kept.flagged[kind].append([int(alone.sum()), int(flagged[alone].sum()), int(good.sum()), int(flagged[good].sum())])
        for fault in run.faults:
            key = fault.since_run, fault.kind, fault.location.name, fault.active.argmax() if fault.kind == "anomaly" else 0
            if fault.since_run == run.run or key in self._delays.onset:
                self._delays.add(key, place, fault.kind, self._first, fault.active, fault.active & (beside == 1), flagged)

    def results(self) -> dict[str, Any]:
        """Results ready for JSON.

        lumisections, channels: kind -> counts of a `Tally`, of lumisections (channels in them) in which a fault of this kind
        acts and no other one; "all": any faults. named: kind -> per run the number of such lumisections and sums of
        `agreement`. flagged: kind -> per run such lumisections, those of them that were flagged, good ones, and flagged good
        ones. alarms: per run its share of good lumisections, and how many of them and of their channels were flagged. faults:
        of `Delays.rows`. seconds: CPU time of all scoring and learning. cost: of `Detector.cost`, with the CPU time to score a
        lumisection and to learn a run; without it for the oracle.
        """
        kept = self._kept
        return {
            "runs": kept.runs,
            "lumisections": {kind: _tallied(kept.faulty[kind], kept.good) for kind in KINDS},
            "channels": {kind: _tallied(kept.faulty_channels[kind], kept.good_channels) for kind in KINDS},
            "named": kept.named,
            "flagged": kept.flagged,
            "alarms": kept.alarms,
            "faults": [list(row) for row in self._delays.rows()],
            "seconds": kept.seconds,
            "cost": {
                **({} if isinstance(self.detector, Oracle) else asdict(self.detector.cost())),
                "look_ms": 1000 * kept.seconds["look"] / max(kept.looked, 1),
                "learn_s": kept.seconds["learn"] / max(self._runs, 1),
            },
        }


def follow(runs: Iterable[SimulatedRun], detector: Detector | Oracle, alarms_per_run: float = 1.0) -> Track:
    """Take a detector through all runs."""
    track = Track(detector, alarms_per_run)
    for run in runs:
        track.go_on(run)
    return track


def _acting(run: SimulatedRun) -> dict[str, np.ndarray]:
    """Number of faults of each kind that act on each channel: kind -> int (n, channels)."""
    acts: dict[str, np.ndarray] = {}
    for fault in run.faults:
        mine = acts.setdefault(fault.kind, np.zeros((len(run.counts), int(run.live.sum())), dtype=np.int16))
        mine += fault.active[:, None] & fault.channels[run.live]
    return acts


def _tallied(faulty: Sequence[np.ndarray], good: Sequence[np.ndarray]) -> dict[str, list[list[int]]]:
    tally = Tally.of(faulty, good)
    return {"faulty": tally.faulty.tolist(), "good": tally.good.tolist()}
