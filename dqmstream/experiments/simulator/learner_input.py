"""Simulated runs as the arrays that learners take, as they would come from a float32 archive."""

from __future__ import annotations

import numpy as np

from dqmstream.experiments.simulator.runs import SimulatedRun, stream
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Split
from dqmstream.lumisection import N_IETA, N_IPHI


def as_maps(run: SimulatedRun) -> Maps:
    """All lumisections of a run, numbered from 1."""
    counts = run.counts.astype(np.float32).reshape(len(run.counts), -1, N_IETA, N_IPHI)
    return Maps(counts, run.events, run.pileup, np.arange(1, len(run.counts) + 1))


def as_run_data(run: SimulatedRun, split: Split) -> RunData:
    """A run with its lumisections divided into train, validation and test part."""
    maps = as_maps(run)
    return RunData(run.run, maps, split.assign_run(maps.lumisection))


def simulate_runs(
    name: str = "moderate", *, seed: int = 0, runs: int | None = None, lumisections: int | None = None
) -> list[RunData]:
    """Simulate the runs of a named stream (docs/benchmark.md), with their split into train, validation and test.

    Parameters
    ----------
    name : str
        null, moderate, small, structured, year, tracks, pair or campaign; overdispersed, threshold, patterns, transient or
        mixture, which lie outside the law of gains; or one of these five or campaign with -null. On null streams nothing
        differs but luminosity.
    seed : int
        0 to 9 are for tuning, 100 and up for results that are reported.
    runs, lumisections : int, optional
        Number of runs, and of lumisections in each; by default those of the stream. Runs of `campaign` have their own
        lengths, and are cut to this number.

    Returns
    -------
    list of RunData
        Maps of one depth: counts float32, shape (lumisections, 1, 64, 72).

    Examples
    --------
    >>> first, second = simulate_runs("null", seed=3, runs=2, lumisections=50)
    >>> first.maps.counts.shape
    (50, 1, 64, 72)
    """
    return [as_run_data(run, Split()) for run in stream(name, seed=seed, runs=runs, lumisections=lumisections)]
