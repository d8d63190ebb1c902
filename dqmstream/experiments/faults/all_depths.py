"""Runs of `tracks` in all seven depths of HE: the conditions, gains and faults of depth 1, carried into the others.

Boxes, modules and HEM15/16 fail in all depths together. The fault of a single channel is moved to a depth that is drawn, the
same one as long as the fault lasts, so that as many lumisections are faulty as in depth 1 alone. Gains of the other depths
drift by the stream's step and age as depth 1 does. The rates of other depths are chosen (`experiments.simulator.depths`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dqmstream.experiments.simulator import LIVE, SimulatedRun, probability
from dqmstream.experiments.simulator.depths import DEPTHS, drift, in_he, rates
from dqmstream.experiments.simulator.detector import ageing
from dqmstream.experiments.simulator.draws import Purpose, generator
from dqmstream.experiments.simulator.fault_locations import FaultLocation
from dqmstream.experiments.simulator.faults import Fault
from dqmstream.experiments.simulator.streams import NamedStream

_TOGETHER = ("box", "module", "hem15/16")
"""Kinds of faults that act in all depths."""

_WHICH_DEPTH, _COUNTS = 2, 3
"""Parts of the seeds of a fault's depth and of a run's counts."""


@lru_cache(maxsize=1)
def he_channels() -> np.ndarray:
    """The channels of HE, with those of depth 1 as the published maps have them: bool, (7, 64, 72). Read-only."""
    live = in_he()
    live[0] = LIVE
    live.setflags(write=False)
    return live


@dataclass(frozen=True, slots=True, eq=False)
class DeepLocation(FaultLocation):
    """A location whose cells are (7, 64, 72)."""

    @property
    def channels(self) -> np.ndarray:
        """The channels of HE in the location: bool, (7, 64, 72)."""
        return he_channels() & self.cells


@dataclass(frozen=True, slots=True, eq=False)
class DeepRun(SimulatedRun):
    """A run of `tracks` in all depths of HE: counts (n, 7, 64, 72), rate and channels of faults (7, 64, 72)."""

    @property
    def live(self) -> np.ndarray:
        return he_channels()

    def redraw(self, rate: np.ndarray, rng: np.random.Generator) -> DeepRun:
        """Draw new counts for a detector of another rate, (7, 64, 72)."""
        counts = np.zeros((len(self.events), *self.live.shape), dtype=np.float32)
        for fired in np.array_split(np.arange(len(self.events)), -(-len(self.events) // _AT_ONCE)):
            rates_now, on_count = self._with_faults(rate, fired)
            p = np.minimum(probability(rates_now, self.pileup[fired, None]) * on_count, 1.0)
            of_live = np.zeros((len(fired), *self.live.shape), dtype=np.float32)
            of_live[:, self.live] = rng.binomial(self.events[fired].astype(np.int64)[:, None], p)
            counts[fired] = of_live
        return replace(self, counts=counts, rate=rate)

    def _with_faults(self, rate: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rates of the channels with their faults in some lumisections, and factors on their mean counts: (n, channels)."""
        moving = np.repeat(rate[None, self.live], len(at), axis=0)
        on_count = np.ones_like(moving)
        for fault in self.faults:
            target = moving if fault.acts_on == "rate" else on_count
            target[np.ix_(fault.active[at], fault.channels[self.live])] *= fault.factor
        return moving, on_count


_AT_ONCE = 64
"""Lumisections that are drawn at once."""


def in_all_depths(run: SimulatedRun, named: NamedStream, seed: int, index: int) -> DeepRun:
    """Run `index` of a stream of the fault benchmark in all depths of HE; what happens in depth 1 stays as it is."""
    gain = drift(named, seed, index) * ageing(named.luminosity_per_run_fb * index)
    rate = np.where(he_channels(), rates(run.rate, named, seed, gain), 0.0)
    faults = tuple(replace(fault, location=_located(fault, seed)) for fault in run.faults)
    deep = DeepRun(run.run, run.counts, run.events, run.pileup, rate, run.truth, faults, faults_within=True)
    return deep.redraw(rate, generator(seed, Purpose.DEPTHS, index, _COUNTS))


def _located(fault: Fault, seed: int) -> DeepLocation:
    where = fault.location
    if fault.kind in _TOGETHER:
        return DeepLocation(where.name, where.numbers, np.repeat(where.cells[None], DEPTHS, axis=0))
    row, column = np.argwhere(where.channels)[0].tolist()
    depths = np.flatnonzero(he_channels()[:, row, column])
    depth = int(generator(seed, Purpose.DEPTHS, fault.since_run, _WHICH_DEPTH, row, column).choice(depths))
    cells = np.zeros(he_channels().shape, dtype=bool)
    cells[depth, row, column] = True
    return DeepLocation(f"{where.name} depth {depth + 1}", (*where.numbers, depth + 1), cells)
