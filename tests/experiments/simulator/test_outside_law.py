"""Streams outside the law of gains: what moves, and null twins in which nothing depends on the run."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.experiments.simulator import LIVE, READOUT_BOXES, SimulatedRun, stream
from dqmstream.experiments.simulator.fault_locations import CHANNELS
from dqmstream.experiments.simulator.movements import RINGS
from dqmstream.experiments.simulator.outside_law import PATTERNS, TWIN
from dqmstream.experiments.simulator.patterns import FAMILIES
from dqmstream.experiments.simulator.run_law import RunLaw, draw_law_counts, run_law
from dqmstream.experiments.simulator.streams import STREAMS
from tests.experiments.simulator.test_streams import digest

OUTSIDE = tuple(name for name, named in STREAMS.items() if named.outside is not None and not named.one_law)

PINNED = {
    "overdispersed": "f12abeb94d78621e",
    "threshold": "5a79c9b538d2210e",
    "patterns": "44cbc3da6cb10ebd",
    "transient": "dc1e3ce725127ab9",
    "mixture": "7f77ad934f4ae605",
}


def residuals(run: SimulatedRun) -> np.ndarray:
    """Counts minus their means, over the binomial spread, of the live channels: (n, 932)."""
    mean = run.expected_with_faults()[:, LIVE]
    return (run.counts[:, LIVE] - mean) / np.sqrt(np.maximum(mean * (1 - mean / run.events[:, None]), 1e-9))


@pytest.mark.parametrize("name", PINNED)
def test_streams_outside_the_law_keep_their_bits(name: str) -> None:
    assert digest(stream(name, seed=101, runs=3, lumisections=20)) == PINNED[name]


@pytest.mark.parametrize("name", OUTSIDE)
def test_conditions_are_those_of_null_and_the_twin_has_one_law(name: str) -> None:
    null, own, twin = (list(stream(each, seed=4, runs=3, lumisections=8)) for each in ("null", name, name + TWIN))
    for one, other, same in zip(null, own, twin, strict=True):
        assert one.run == other.run == same.run
        for part in ("events", "pileup"):
            assert np.array_equal(getattr(one, part), getattr(other, part))
            assert np.array_equal(getattr(one, part), getattr(same, part))
    assert all(np.array_equal(run.rate, twin[0].rate) and run.truth["law"] == twin[0].truth["law"] for run in twin)
    assert not np.array_equal(twin[0].counts, twin[1].counts)
    assert np.array_equal(own[0].counts, twin[0].counts)
    differs = [run.truth["law"] != own[0].truth["law"] or not np.array_equal(run.rate, own[0].rate) for run in own[1:]]
    assert all(differs)


@pytest.mark.parametrize(("events", "overdispersion"), [(1250, 1.5), (60, 1.5), (1250, 2.0)])
def test_overdispersion_multiplies_the_binomial_variance(events: int, overdispersion: float) -> None:
    n = 60
    rate = np.where(LIVE, 0.8, 0.0)
    law = RunLaw(overdispersion)
    rngs = [np.random.default_rng(seed) for seed in (1, 2)]
    counts = draw_law_counts(law, rate, np.full(n, float(events)), np.full(n, 1.0), (), *rngs)[:, LIVE]
    p = counts.mean() / events
    assert counts.var() / (events * p * (1 - p)) == pytest.approx(overdispersion, rel=0.02)
    assert counts.max() <= events


def test_rings_move_together_and_independently_of_each_other() -> None:
    run = next(stream("overdispersed", seed=3, lumisections=200))
    left = residuals(run)
    assert left.mean() == pytest.approx(0, abs=0.05)
    rings = np.stack([left[:, ring == RINGS].sum(axis=1) / np.sqrt((ring == RINGS).sum()) for ring in np.unique(RINGS)], axis=1)
    assert (rings.var(axis=0) > 1.5 * 1.1).mean() > 0.9  # 1.5 without the modes
    correlation = np.corrcoef(rings.T)[np.triu_indices(rings.shape[1], 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(200)


def test_a_box_with_a_threshold_differs_above_it_alone() -> None:
    first, second = stream("threshold", seed=5, runs=2)
    assert np.array_equal(first.rate, second.rate)
    assert first.law is not None and len(first.law.thresholds) == 6
    pileup = np.array([1.9, 7.0])
    changed = first.expected(np.full(2, 1000.0), pileup) != second.expected(np.full(2, 1000.0), pileup)
    assert not changed[0].any() and changed[1].any()
    left = residuals(first)
    for one in first.law.thresholds:
        assert 2 <= one.threshold <= 4.5 and 0.007 <= abs(one.slope) <= 0.02
        above = first.pileup > one.threshold + 1
        assert abs(left[np.ix_(above, one.channels)].mean()) < 5 / np.sqrt(above.sum() * len(one.channels))
        assert (one.factor(np.array([one.threshold - 1, one.threshold + 1])) == [1, 1 + one.slope]).all()


def test_patterns_move_without_changing_the_mean() -> None:
    laws = [run_law(PATTERNS, 2, index) for index in range(8)]
    kinds = [law.truth()["movements"][0]["kind"] for law in laws]
    assert len(set(kinds[:4])) == len(set(kinds[4:])) == len(FAMILIES)
    for law in laws:
        (movement,) = law.movements
        grid = movement.grid()
        weights = np.exp(grid.log_weights)
        assert weights.sum() == pytest.approx(1)
        assert np.allclose(weights @ grid.factors, 1, atol=1e-4)
        assert np.allclose(grid.between.T @ grid.nodes, grid.factors)
        drawn = movement.draw(4000, np.random.default_rng(1))
        assert drawn.mean() == pytest.approx(1, abs=0.005)
        spread = np.sqrt(weights @ np.square(grid.factors - 1))
        assert drawn.std(axis=0) == pytest.approx(spread, rel=0.2)
        assert np.sqrt(np.square(spread).mean()) > 0.015


def test_flickering_channels_and_the_tripped_box_count_nothing_while_they_are_out() -> None:
    runs = list(stream("transient", seed=6, runs=3, lumisections=200))
    for run in runs:
        law = run.law
        assert law is not None and len(law.flickers) == 20 and law.trip in READOUT_BOXES
        out = run.faulty_channels()[:, LIVE]
        silent = run.counts[:, LIVE] == 0
        assert np.array_equal(out, silent)
        assert np.mean([fault.active for fault in run.faults if fault.kind == "flicker"]) == pytest.approx(0.25, abs=0.06)
        (trip,) = [fault for fault in run.faults if fault.kind == "box"]
        assert trip.active.sum() == 20 and np.diff(np.flatnonzero(trip.active)).max() == 1
        never = ~np.isin(np.arange(len(CHANNELS)), law.flickers) & ~trip.channels[LIVE]
        assert not silent[:, never].any()
    assert len({run.law.flickers for run in runs if run.law is not None}) == 3


def test_a_mixture_takes_each_part_for_some_runs_and_leaves_it_out_of_others() -> None:
    runs = list(stream("mixture", seed=1, runs=16, lumisections=1))
    for part in ("movements", "thresholds", "flickers", "trip"):
        has = [bool(run.truth["law"][part]) for run in runs]
        assert any(has) and not all(has)
    assert {run.truth["law"]["overdispersion"] for run in runs} == {1.0, 1.5}
    assert any(run.truth["dead"] for run in runs) and any(run.truth["rbx"] for run in runs)
