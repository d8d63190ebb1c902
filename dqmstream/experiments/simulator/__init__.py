"""Simulated runs of occupancy maps whose truth is known and written beside them.

A channel's count is Binomial(N, p) with p = 1 - (1 + R * rate / k)**-k: N is the number of events of the lumisection, R acts
like pileup, and rate is the channel's own. Measured on the two published runs (ring residuals of 1.5 % at most): k = 4.75, the
rate of each ring, N about 1510 and R = 1 in run 355456, N about 942 and R about 12 in run 357479, and a spread of 6-10 % over
the channels of a ring. Chosen, not measured: how N and R move, truncated lumisections, and everything that differs between runs
(`dqmstream.experiments.simulator.streams`).

In `null`, `moderate`, `small`, `structured` and the streams outside the law of gains (`outside_law`) N and R move within each
run over the same ranges in all runs. If they differed between runs, luminosity alone would tell the runs apart, and a
classifier could succeed without seeing the detector. In `year` they depend on the run's place in its fill; in `tracks` on the
run, where labels are good and faulty, which luminosity does not tell apart; in `pair` they are those of the published runs,
which luminosity does tell apart. `campaign` has the conditions of data taking (`dqmstream.experiments.simulator.fills`), which
tell some runs apart; its null twin shows how far.

The bits of a run depend on the stream, the seed, the run's index and its length, not on how many runs are asked for. They are
reproducible with one version of NumPy; another version may draw other numbers.
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
from dqmstream.experiments.simulator.run import SimulatedRun
from dqmstream.experiments.simulator.runs import simulated_run, stream

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
