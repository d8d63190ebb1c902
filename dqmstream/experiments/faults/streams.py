"""The streams of the fault benchmark: `tracks`, whose faults are known, under large or small shifts of conditions and gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dqmstream.experiments.faults.all_depths import in_all_depths
from dqmstream.experiments.simulator import SimulatedRun
from dqmstream.experiments.simulator.conditions import run_numbers
from dqmstream.experiments.simulator.runs import draw_runs
from dqmstream.experiments.simulator.streams import NamedStream, named_stream

STREAM = "tracks"

SHIFTS: dict[str, NamedStream] = {
    "large": named_stream(STREAM),
    "small": replace(named_stream(STREAM), drift_sigma=0.004, luminosity="run", luminosity_per_run_fb=0.0),
}
"""What moves between runs. large: events, pileup from 2 to 14, drift of 1.2 % a run, ageing. small: drift of .4 % a run; events
and pileup move within runs alone, over the same ranges in each. The faults are the same."""


def fault_stream(shift: str, *, seed: int, runs: int, lumisections: int, depths: int = 1) -> Iterator[SimulatedRun]:
    """The runs of a stream of the fault benchmark, one at a time.

    shift: of `SHIFTS`. depths: 1 for depth 1 of HE, 7 for all depths of HE (`faults.all_depths`).
    """
    named = SHIFTS[shift]
    for index, run in enumerate(draw_runs(named, seed, run_numbers(named, seed, runs), lumisections)):
        yield run if depths == 1 else in_all_depths(run, named, seed, index)
