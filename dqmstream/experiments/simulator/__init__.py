"""Runs of occupancy maps whose truth is known: what differs between two runs is drawn here, and written beside them.

A channel's count is Binomial(N, p), p = 1 - (1 + R * rate / k)**-k, where N is the number of events of the
lumisection, R acts like pileup, and rate is the channel's own. Measured on the two published runs (ring residuals
of 1.5 % at most): k = 4.75 and the rate of each ring, with N about 1510 and R = 1 for run 355456, N about 942 and R
about 12 for run 357479. Measured there too: channels differ by 6-10 % in a ring. Chosen: how N and R move, the
truncated lumisections, and all that differs between runs (`dqmstream.experiments.simulator.streams`).

N and R move *within* each run of `null`, `moderate`, `small` and `structured` over the same ranges in all of them. If
they differed between runs, luminosity alone would name the run, and no classifier could be blamed for finding nothing
else. In `year` they depend on the run's place in its fill, in `tracks` on the run (labels there are good and faulty, and
luminosity names neither), and in `pair` they are those of the published runs, which luminosity does name.

A run's bits depend on the stream, the seed, the run's index and its length, and not on how many runs are asked for.
They are the same with one version of NumPy; NumPy does not promise the same draws from another.
"""

from __future__ import annotations

from dqmstream.experiments.simulator.conditions import run_numbers
from dqmstream.experiments.simulator.detector import (
    LIVE,
    READOUT_BOXES,
    RING_RATES,
    K,
    draw_counts,
    fingerprint,
    nominal_rate,
    probability,
)
from dqmstream.experiments.simulator.faults import Fault
from dqmstream.experiments.simulator.files import interpolate, write
from dqmstream.experiments.simulator.runs import SimulatedRun, simulated_run, stream

__all__ = [
    "LIVE",
    "READOUT_BOXES",
    "RING_RATES",
    "Fault",
    "K",
    "SimulatedRun",
    "draw_counts",
    "fingerprint",
    "interpolate",
    "nominal_rate",
    "probability",
    "run_numbers",
    "simulated_run",
    "stream",
    "write",
]
