"""State of the detector in each run: gains and lasting faults, stepped from run to run or computed for any run alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dqmstream.experiments.simulator.conditions import Luminosity
from dqmstream.experiments.simulator.detector import LIVE, READOUT_BOXES, ageing
from dqmstream.experiments.simulator.draws import run_generators, walk
from dqmstream.experiments.simulator.fault_locations import box, channel
from dqmstream.experiments.simulator.faults import Fault, anomalies, lasting_faults
from dqmstream.experiments.simulator.streams import NamedStream
from dqmstream.lumisection import N_IETA, N_IPHI

ALIVE = -1


class DetectorHistory(Protocol):
    """Gains and faults of the detector in each run."""

    def at(self, index: int, luminosity: Luminosity) -> tuple[np.ndarray, list[Fault]]:
        """Gain of each channel without faults, (64, 72), and the faults of run `index`."""
        ...


def detector_history(named: NamedStream, seed: int, run_number: Callable[[int], int]) -> DetectorHistory:
    """The history of a stream's detector. run_number: gives the number of the run at an index."""
    return LazyHistory(named, seed, run_number) if named.lazy else SteppedHistory(named, seed, run_number)


class LazyHistory:
    """Computes any run at about the same cost; nothing is carried from run to run."""

    def __init__(self, named: NamedStream, seed: int, run_number: Callable[[int], int]) -> None:
        self._named, self._seed, self._run_number = named, seed, run_number

    def at(self, index: int, luminosity: Luminosity) -> tuple[np.ndarray, list[Fault]]:
        """Gain of each channel without faults, (64, 72), and the faults of run `index`."""
        named, seed, lumisections = self._named, self._seed, len(luminosity.pileup)
        gain = np.exp(named.drift_sigma * walk(seed, index)) * ageing(luminosity.integrated_fb)
        lasting = lasting_faults(named, seed, index, lumisections, self._run_number)
        return gain, [*lasting, *anomalies(named, seed, index, lumisections, self._run_number(index))]


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The detector before a run: log gain, and index of the run since which a channel is dead or ALIVE, (64, 72) each."""

    log_gain: np.ndarray
    dead_since: np.ndarray


@dataclass(frozen=True, slots=True)
class _BoxLoss:
    """A readout box that has lost gain for a run."""

    side: int
    n: int
    factor: float


class SteppedHistory:
    """Steps from run to run: a run asked for in order costs one step, a run asked for alone all steps before it."""

    def __init__(self, named: NamedStream, seed: int, run_number: Callable[[int], int]) -> None:
        self._named, self._seed, self._run_number = named, seed, run_number
        self._restart()

    def at(self, index: int, luminosity: Luminosity) -> tuple[np.ndarray, list[Fault]]:
        """Gain of each channel without faults, (64, 72), and the faults of run `index`."""
        self._go_to(index)
        every = np.ones(len(luminosity.pileup), dtype=bool)
        since = self._state.dead_since
        faults = [
            Fault("dead", channel(row, column), 0.0, every, self._run_number(since[row, column]))
            for row, column in np.argwhere(since != ALIVE).tolist()
        ]
        faults += [Fault("box", box(loss.side, loss.n), loss.factor, every, self._run_number(index)) for loss in self._losses]
        return np.exp(self._state.log_gain), faults

    def _restart(self) -> None:
        self._index = 0
        self._losses: list[_BoxLoss] = []
        alive = np.full((N_IETA, N_IPHI), ALIVE)
        self._state = _State(log_gain=np.zeros((N_IETA, N_IPHI)), dead_since=alive)

    def _go_to(self, index: int) -> None:
        """Step to run `index`, from the first run if it lies behind."""
        if index < self._index:
            self._restart()
        while self._index < index:
            self._index += 1
            changes = run_generators(self._seed, self._index)[1]
            self._state = _changed(self._state, self._named, self._index, changes)
            self._losses = _box_losses(self._named, changes)


def _changed(state: _State, named: NamedStream, index: int, rng: np.random.Generator) -> _State:
    """The detector one run later. Every number is drawn even if it is not used, so that streams can be compared in pairs."""
    step = rng.standard_normal((N_IETA, N_IPHI))
    dies, repaired, which_dies, which_repaired = rng.random(4)
    since = state.dead_since.copy()
    was_dead = since != ALIVE
    if repaired < named.repair_p and was_dead.any():
        since[tuple(_pick(np.argwhere(was_dead), which_repaired))] = ALIVE
    if dies < named.death_p:
        since[tuple(_pick(np.argwhere(LIVE & ~was_dead), which_dies))] = index
    return _State(log_gain=state.log_gain + named.drift_sigma * step, dead_since=since)


def _box_losses(named: NamedStream, rng: np.random.Generator) -> list[_BoxLoss]:
    lost, which, where = rng.random(3)
    if lost >= named.rbx_p:
        return []
    side, n = READOUT_BOXES[int(which * len(READOUT_BOXES))]
    low, high = named.rbx_factor
    return [_BoxLoss(side, n, low + (high - low) * float(where))]


def _pick(rows: np.ndarray, where: float) -> np.ndarray:
    return rows[int(where * len(rows))]
