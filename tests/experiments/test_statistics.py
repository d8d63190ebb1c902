"""Intervals hold what they say and tests reject as often as they say, on simulated streams; by hand where a hand can."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from dqmstream.errors import InputError
from dqmstream.experiments.statistics import (
    FiguresByRun,
    chance_interval,
    clustered_mean,
    effective_count,
    holm,
    paired_difference,
)
from tests.scale import scaled

RUNS = 20


def simulate(rng: np.random.Generator, streams: int, *, between: float, mean: float = 0.0, orders: int = 1) -> FiguresByRun:
    """Runs that scatter by 1, around their stream's mean that scatters by `between`; an order adds .3 to each run's value."""
    shift, runs = between * rng.standard_normal(streams), rng.standard_normal((streams, RUNS))
    return {
        (s, o): dict(enumerate(mean + shift[s] + runs[s] + 0.3 * rng.standard_normal(RUNS)))
        for s in range(streams)
        for o in range(orders)
    }


def moved(cells: FiguresByRun, rng: np.random.Generator, by: float = 0.0) -> FiguresByRun:
    """Each value moved by a normal number of deviation 1 around `by`."""
    return {cell: {run: value + by + rng.standard_normal() for run, value in runs.items()} for cell, runs in cells.items()}


def flat(value: float, streams: int = 2, orders: int = 1) -> FiguresByRun:
    return {(s, o): dict.fromkeys(range(4), value) for s in range(streams) for o in range(orders)}


def test_the_estimate_is_the_mean_over_streams_of_the_mean_over_runs_with_orders_averaged() -> None:
    cells: FiguresByRun = {(1, 0): {10: 0.2, 11: 0.4}, (1, 1): {11: 0.6, 10: 0.4}, (2, 0): {10: 1.0, 11: 0.8, 12: 0.9}}
    found = clustered_mean(cells)
    # run 10 of stream 1: .3, run 11: .5; stream 2: .9
    assert found.estimate == pytest.approx((0.4 + 0.9) / 2)
    assert (found.streams, found.orders, found.runs, found.resampled) == (2, 2, 5, "streams and runs")
    assert found.low < found.estimate < found.high


def test_with_one_stream_it_says_that_only_runs_were_resampled() -> None:
    assert clustered_mean({(100, 0): {1: 0.5, 2: 0.7}}).resampled == "runs"


def test_another_order_of_the_same_runs_is_no_new_evidence() -> None:
    one = simulate(np.random.default_rng(0), 1, between=0.0)[(0, 0)]
    alone, twice = clustered_mean({(0, 0): one}), clustered_mean({(0, 0): one, (0, 1): dict(reversed(one.items()))})
    assert (twice.low, twice.high) == (alone.low, alone.high)


def test_nothing_is_claimed_of_nothing_and_no_width_of_a_single_run() -> None:
    assert np.isnan(clustered_mean({}).estimate)
    single = clustered_mean({(0, 0): {1: 0.5}})
    assert (single.low, single.high) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    cells = simulate(np.random.default_rng(1), 3, between=0.1)
    assert clustered_mean(cells) == clustered_mean(cells)
    assert clustered_mean(cells).low != clustered_mean(cells, seed=1).low


@pytest.mark.parametrize(
    ("streams", "between"),
    [(1, 0.0), (3, 0.0), (3, 0.5), (8, 0.5)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(streams: int, between: float) -> None:
    """Coverage seen with 2000 repetitions (DQMSTREAM_SOAK=1), in this order: .944, .998, .962, .973."""
    rng = np.random.default_rng([streams, int(10 * between)])
    repeats = scaled(80, 2000)
    inside = 0
    for _ in range(repeats):
        found = clustered_mean(simulate(rng, streams, between=between, mean=0.7))
        inside += found.low <= 0.7 <= found.high
    # Never fewer than 95 % say, but for four deviations of the count itself.
    assert inside / repeats > 0.95 - 4 * np.sqrt(0.95 * 0.05 / repeats)


def test_resampling_lumisections_or_runs_as_if_streams_were_one_would_be_too_narrow() -> None:
    """The control of the test before: where streams differ, runs pooled in one stream hold the truth far too rarely."""
    rng = np.random.default_rng(5)
    repeats, inside = scaled(60, 1000), 0
    for _ in range(repeats):
        cells = simulate(rng, 3, between=0.5)
        pooled: FiguresByRun = {(0, 0): {100 * s + run: value for (s, _), runs in cells.items() for run, value in runs.items()}}
        found = clustered_mean(pooled)
        inside += found.low <= 0 <= found.high
    assert inside / repeats < 0.85


def test_a_paired_difference_by_hand() -> None:
    ours: FiguresByRun = {(0, 0): {1: 0.9, 2: 0.8, 3: 0.7}}
    theirs: FiguresByRun = {(0, 0): {1: 0.8, 2: 0.6, 3: 0.8}}
    found = paired_difference(ours, theirs)
    assert found.interval.estimate == pytest.approx((0.1 + 0.2 - 0.1) / 3)
    # Sums of ±1 ±2 ±1: 4 2 2 0 0 -2 -2 -4 (in tenths); six of eight are as far from zero as 2.
    assert found.p == pytest.approx(6 / 8)
    assert (found.flipped, found.clusters, found.exact) == ("runs", 3, True)


def test_six_streams_are_flipped_whole() -> None:
    ours: FiguresByRun = {(s, 0): {run: 0.5 + 0.01 * run for run in range(10)} for s in range(6)}
    found = paired_difference(ours, {cell: dict.fromkeys(runs, 0.1) for cell, runs in ours.items()})
    assert (found.flipped, found.clusters, found.exact) == ("streams", 6, True)
    assert found.p == pytest.approx(2 / 2**6)


def test_a_comparison_of_other_runs_is_refused() -> None:
    with pytest.raises(InputError, match="same streams, orders and runs"):
        paired_difference(flat(0.5), flat(0.5, orders=2))
    with pytest.raises(InputError, match="same streams, orders and runs"):
        paired_difference({(0, 0): {1: 0.5}}, {(0, 0): {2: 0.5}})


@pytest.mark.parametrize("streams", [1, 8])
def test_the_p_value_is_uniform_where_nothing_differs(streams: int) -> None:
    """Runs of one stream by random flips, streams by all flips; both strategies share what a run is like."""
    rng = np.random.default_rng([7, streams])
    values = []
    for _ in range(scaled(80, 2000)):
        ours = simulate(rng, streams, between=0.0)
        theirs: FiguresByRun = {
            cell: {run: value + rng.standard_normal() for run, value in runs.items()} for cell, runs in ours.items()
        }
        values.append(paired_difference(ours, theirs).p)
    assert kstest(values, "uniform").pvalue > 1e-3
    assert np.mean(np.array(values) <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(values))


def test_flipping_runs_rejects_too_often_where_whole_streams_differ() -> None:
    """What `flipped` warns of. At .05, with 3 streams whose differences move by half of what their runs' do: .37."""
    rng = np.random.default_rng(11)
    values = []
    for _ in range(scaled(60, 1000)):
        differences = simulate(rng, 3, between=0.5)
        values.append(paired_difference(differences, {cell: dict.fromkeys(runs, 0.0) for cell, runs in differences.items()}).p)
    assert np.mean(np.array(values) <= 0.05) > 0.15


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    theirs = simulate(rng, 2, between=0.3)
    ours: FiguresByRun = {
        cell: {run: value + 1 + rng.standard_normal() for run, value in runs.items()} for cell, runs in theirs.items()
    }
    found = paired_difference(ours, theirs)
    assert found.p < 0.001
    assert not found.exact
    assert found.interval.low > 0


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and no smaller than the one before: .02 .03 .06 .06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    assert holm([]).shape == (0,)


def test_the_chance_interval_is_the_binomials() -> None:
    found = chance_interval(4, 100)
    assert (found.estimate, found.low, found.high) == (0.25, 0.17, 0.34)
    assert chance_interval(4, 25).high > found.high


def guess_by_luminosity(rng: np.random.Generator, runs: int, n: int, correlation: float) -> tuple[np.ndarray, ...]:
    """A classifier that names a run by luminosity and noise alone: named, labels and numbers of the test blocks."""
    kept = np.flatnonzero((np.arange(n) % 200 >= 150) & (np.arange(n) % 200 < 180))
    named = []
    for _ in range(runs):
        z = np.empty(n)
        z[0] = rng.standard_normal()
        kick = np.sqrt(1 - correlation**2) * rng.standard_normal(n)
        for i in range(1, n):
            z[i] = correlation * z[i - 1] + kick[i]
        named.append(np.clip(np.floor((z[kept] + 0.3 * rng.standard_normal(len(kept)) + 2) / 4 * runs), 0, runs - 1))
    return np.concatenate(named), np.repeat(np.arange(runs), len(kept)), np.tile(kept + 1, runs)


def test_independent_lumisections_count_whole() -> None:
    named, labels, lumisection = guess_by_luminosity(np.random.default_rng(0), 8, 400, 0.0)
    assert effective_count(named, labels, lumisection) > 0.75 * len(named)
    assert effective_count(np.zeros(60), np.repeat([0, 1], 30), np.tile(np.arange(30), 2)) == 60


def test_what_all_runs_share_at_the_same_number_makes_no_average_uncertain() -> None:
    """Four runs are named by the time in the fill: each number is right in one of them, and the average is 1/4 for ever."""
    by_time = np.repeat([0, 1, 2, 3], 15)
    named, labels, numbers = np.tile(by_time, 4), np.repeat(np.arange(4), 60), np.tile(np.arange(60), 4)
    assert np.mean(named == labels) == 0.25
    assert effective_count(named, labels, numbers) == len(named)
    # A time of its own for each run is luck that 15 lumisections share.
    rng = np.random.default_rng(0)
    own = np.concatenate([np.repeat(rng.integers(0, 4, 4), 15) for _ in range(40)])
    labels, numbers = np.repeat(np.arange(4), 600), np.tile(np.arange(600), 4)
    assert effective_count(own, labels, numbers) == pytest.approx(len(own) / 15, rel=0.35)


def test_the_chance_interval_holds_where_neighbours_share_their_luminosity() -> None:
    """Accuracy of guessing by luminosity, 8 runs: inside the interval of the effective count, and not of the plain one.

    Seen with 1000 repetitions (DQMSTREAM_SOAK=1): .95 and .75; a lumisection counted for .34.
    """
    rng = np.random.default_rng(1)
    repeats = scaled(100, 1000)
    inside, naive, counts = 0, 0, []
    for _ in range(repeats):
        named, labels, lumisection = guess_by_luminosity(rng, 8, 400, 0.9)
        accuracy = np.mean(named == labels)
        counts.append(effective_count(named, labels, lumisection) / len(named))
        found, plain = chance_interval(8, counts[-1] * len(named)), chance_interval(8, len(named))
        inside += found.low <= accuracy <= found.high
        naive += plain.low <= accuracy <= plain.high
    assert inside / repeats > 0.95 - 4 * np.sqrt(0.95 * 0.05 / repeats)
    assert naive / repeats < 0.85
    assert 0.1 < np.mean(counts) < 0.5
