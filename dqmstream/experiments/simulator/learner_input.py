"""Simulated runs as the arrays that learners take, as they would come from a float32 archive."""

from __future__ import annotations

import numpy as np

from dqmstream.experiments.simulator.runs import SimulatedRun
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Split


def as_maps(run: SimulatedRun) -> Maps:
    """All lumisections of a run, numbered from 1."""
    return Maps(run.counts.astype(np.float32)[:, None], run.events, run.pileup, np.arange(1, len(run.counts) + 1))


def as_run_data(run: SimulatedRun, split: Split) -> RunData:
    """A run with its lumisections divided into train, validation and test part."""
    maps = as_maps(run)
    return RunData(run.run, maps, split.assign(maps.lumisection))
