"""Faults: which channels, by which factor, and in which lumisections.

dead: one channel x0. degraded: one channel x0.2-0.8. hot: one channel x2. module: the channels of a readout module. box: those
of a readout box. hem15/16: those of HEM15 and HEM16. flicker: one channel that drops out and returns until it is repaired.
anomaly: one channel for 1-3 lumisections, by one of six multipliers that the field uses. All but anomalies last until a repair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from dqmstream.experiments.simulator.detector import LIVE
from dqmstream.experiments.simulator.draws import Purpose, generator
from dqmstream.experiments.simulator.fault_locations import FaultLocation, a_box, a_channel, a_module, hem1516
from dqmstream.experiments.simulator.streams import FaultRate, Kind, NamedStream
from dqmstream.lumisection import IETA

ANOMALY_MULTIPLIERS = (0.0, 0.2, 0.4, 0.6, 0.8, 2.0)
ANOMALY_LONGEST = 3
"""Lumisections; all lengths from 1 are equally likely."""

FLICKER_DROPS_P, FLICKER_STAYS_OUT_P = 0.1, 0.7
"""Probabilities from one lumisection to the next (chosen): a flickering channel is out for a quarter of the time."""


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """A fault in one run.

    factor: multiplies, as `acts_on` says, the rate of the channels, or their mean count (at most the number of events).
    active: the lumisections of the run in which it acts, bool, (n,). since_run: number of the run in which it began.
    """

    kind: Kind
    location: FaultLocation
    factor: float
    active: np.ndarray
    since_run: int
    acts_on: Literal["rate", "count"] = "rate"

    @property
    def channels(self) -> np.ndarray:
        """The live channels that have the fault: bool, (64, 72)."""
        return self.location.channels

    def truth(self) -> dict[str, object]:
        """The fault, ready for JSON: channels as [ieta, iphi], lumisections as inclusive ranges."""
        edges = np.flatnonzero(np.diff(self.active.astype(np.int8), prepend=0, append=0))
        return {
            "kind": self.kind,
            "where": self.location.name,
            "factor": float(f"{self.factor:.5g}"),
            "acts_on": self.acts_on,
            "since_run": self.since_run,
            "lumisections": [[int(first) + 1, int(stop)] for first, stop in edges.reshape(-1, 2)],
            "channels": [[int(IETA[row]), int(column) + 1] for row, column in np.argwhere(self.channels)],
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Birth:
    """A fault that begins in run `index`. start, end: in runs since the start of the stream."""

    index: int
    kind: Kind
    location: FaultLocation
    factor: float
    start: float
    end: float


def lasting_faults(
    named: NamedStream, seed: int, index: int, lumisections: int, run_number: Callable[[int], int]
) -> list[Fault]:
    """The faults of run `index` that last until a repair. Only runs in which they can have begun are looked at.

    run_number: gives the number of the run at an index.
    """
    longest = ceil(max((rate.longest_runs for rate in named.faults), default=0))
    first = 0 if named.within_runs else 1
    begun = [birth for i in range(max(first, index - longest), index + 1) for birth in _births(named, seed, i)]
    time = index + np.arange(lumisections) / lumisections
    faults = []
    for birth in begun:
        active = (birth.start <= time) & (time < birth.end)
        if birth.kind == "flicker":
            active &= _flicker(lumisections, generator(seed, Purpose.FLICKER, birth.index, index))
        if active.any():
            since = run_number(birth.index)
            faults.append(Fault(birth.kind, birth.location, birth.factor, active, since))
    return faults


def anomalies(named: NamedStream, seed: int, index: int, lumisections: int, run_number: int) -> list[Fault]:
    """The short anomalies of run `index`."""
    if not named.anomaly_p:
        return []
    rng = generator(seed, Purpose.ANOMALIES, index)
    begins, which = rng.random((2, lumisections))
    lengths = rng.integers(1, ANOMALY_LONGEST + 1, lumisections)
    multipliers = rng.choice(ANOMALY_MULTIPLIERS, lumisections)
    faults = []
    for first in np.flatnonzero(begins < named.anomaly_p):
        active = np.zeros(lumisections, dtype=bool)
        active[first : first + lengths[first]] = True
        location = a_channel(float(which[first]))
        faults.append(Fault("anomaly", location, float(multipliers[first]), active, run_number, acts_on="count"))
    return faults


def apply(faults: tuple[Fault, ...] | list[Fault], rate: np.ndarray, lumisections: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates of the live channels with the faults in each lumisection, and factors on their mean counts: (n, 932) each.

    rate: without the faults, (64, 72).
    """
    moving = np.repeat(rate[None, LIVE], lumisections, axis=0)
    on_count = np.ones_like(moving)
    for fault in faults:
        target = moving if fault.acts_on == "rate" else on_count
        target[np.ix_(fault.active, fault.channels[LIVE])] *= fault.factor
    return moving, on_count


def chosen(named: NamedStream) -> dict[str, object]:
    """The constants of a stream's faults that `NamedStream` does not hold, for the head of truth.json."""
    numbers: dict[str, object] = {}
    if any(rate.kind == "flicker" for rate in named.faults):
        numbers["flicker"] = {"drops": FLICKER_DROPS_P, "stays_out": FLICKER_STAYS_OUT_P}
    if named.anomaly_p:
        numbers["anomalies"] = {"multipliers": ANOMALY_MULTIPLIERS, "longest_lumisections": ANOMALY_LONGEST}
    return numbers


def _births(named: NamedStream, seed: int, index: int) -> list[_Birth]:
    """Faults that begin in a run. Every number is drawn even if it is not used."""
    born = []
    draws = generator(seed, Purpose.FAULTS, index).random((len(named.faults), 5))
    for rate, (begins, when, life, which, level) in zip(named.faults, draws.tolist(), strict=True):
        if begins < rate.births_p:
            low, high = rate.factor
            start = index + when if named.within_runs else float(index)
            end = start + _life_runs(rate, life, whole=not named.within_runs)
            born.append(_Birth(index, rate.kind, _LOCATIONS[rate.kind](which), low + (high - low) * level, start, end))
    return born


def _life_runs(rate: FaultRate, uniform: float, whole: bool) -> float:
    """Runs until the repair: exponential, or geometric if faults last whole runs."""
    log = np.log1p(-uniform)
    runs = max(1.0, np.ceil(log / np.log1p(-1 / rate.mean_runs))) if whole else -rate.mean_runs * log
    return float(min(runs, rate.longest_runs))


def _flicker(lumisections: int, rng: np.random.Generator) -> np.ndarray:
    """Lumisections in which a flickering channel is out: bool, (n,). It is in before the first."""
    out = np.zeros(lumisections, dtype=bool)
    is_out = False
    for i, uniform in enumerate(rng.random(lumisections)):
        is_out = uniform < (FLICKER_STAYS_OUT_P if is_out else FLICKER_DROPS_P)
        out[i] = is_out
    return out


_LOCATIONS: dict[Kind, Callable[[float], FaultLocation]] = {
    "dead": a_channel,
    "degraded": a_channel,
    "hot": a_channel,
    "flicker": a_channel,
    "module": a_module,
    "box": a_box,
    "hem15/16": lambda uniform: hem1516(),
}
"""Chooses the location of a fault of each kind by a number in [0, 1)."""
