"""Faults in seven depths: boxes fail through all of them, a channel in one; detectors find what fails in any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.experiments.faults.all_depths import DeepRun, he_channels
from dqmstream.experiments.faults.autodqm import BetaBinomial
from dqmstream.experiments.faults.detectors import Detector
from dqmstream.experiments.faults.learned import FaultFlags, MaskedReconstruction
from dqmstream.experiments.faults.streams import fault_stream
from dqmstream.experiments.faults.track import WARM, follow
from dqmstream.experiments.simulator import LIVE, SimulatedRun
from dqmstream.experiments.simulator.learner_input import as_maps
from dqmstream.learners.monitoring.depthvit import Training


def drawn(depths: int, runs: int = WARM + 3, lumisections: int = 40) -> list[SimulatedRun]:
    return list(fault_stream("large", seed=3, runs=runs, lumisections=lumisections, depths=depths))


@pytest.fixture(scope="module")
def deep() -> list[SimulatedRun]:
    return drawn(7)


def test_the_faults_and_conditions_of_depth_1_are_carried_into_all_depths(deep: list[SimulatedRun]) -> None:
    kinds, depths = set(), set()
    for one, flat in zip(deep, drawn(1), strict=True):
        assert isinstance(one, DeepRun)
        assert one.counts.shape == (40, 7, 64, 72) and as_maps(one).counts.shape == one.counts.shape
        assert not one.counts[:, ~he_channels()].any() and (he_channels()[0] == LIVE).all()
        np.testing.assert_array_equal(one.faulty, flat.faulty)
        np.testing.assert_array_equal(one.events, flat.events)
        np.testing.assert_array_equal(one.rate[0], flat.rate)
        for fault, before in zip(one.faults, flat.faults, strict=True):
            acts = fault.channels.any(axis=(1, 2))
            kinds.add(fault.kind)
            if before.channels.sum() > 1:
                assert acts.sum() == 7
            else:
                assert fault.channels.sum() == 1 and fault.location.name.startswith(before.location.name)
                depths.add(int(acts.argmax()))
        off = [fault for fault in one.faults if fault.factor == 0 and fault.acts_on == "rate"]
        assert all(not one.counts[np.ix_(fault.active, *map(np.unique, np.nonzero(fault.channels)))].all() for fault in off)
        assert all(not one.counts[fault.active][:, fault.channels].any() for fault in off)
    assert len(depths) > 2 and "anomaly" in kinds


BRIEF = Training(layers=1, batch=8, first_epochs=6, epochs=1, models=2)


@pytest.mark.parametrize(
    "detector", [BetaBinomial(), MaskedReconstruction(0, BRIEF, residuals=True), FaultFlags()], ids=lambda d: type(d).__name__
)
def test_detectors_find_a_channel_that_dies_in_any_depth(detector: Detector) -> None:
    runs = list(fault_stream("small", seed=4, runs=3, lumisections=50, depths=7))
    track, run = follow(runs[:2], detector), runs[2]
    live = he_channels()
    channel = np.flatnonzero(np.argwhere(live)[:, 0] == 3)[0]  # one of depth 4
    counts = run.counts.copy()
    counts[:, *np.argwhere(live)[channel]] = 0
    seen = track.look(replace(run, counts=counts))
    assert seen.channels.shape == (50, live.sum())
    assert np.median(seen.channels[:, channel]) > np.quantile(seen.channels, 0.99)
