"""Two runs compared: what changed is named, what did not is not, and luminosity is no change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, kstest

from benchmarks.compare import RATE, Known, counts_of, redrawn, score, sparse_pair, stream_pairs
from dqmstream.errors import InputError
from dqmstream.experiments.compare.compare import compare_pair
from dqmstream.experiments.compare.comparison import Comparison
from dqmstream.experiments.compare.estimate import moderate
from dqmstream.experiments.compare.pair import pair_of
from dqmstream.experiments.compare.run_counts import RunCounts
from dqmstream.experiments.compare.samples import Channels, Sample
from dqmstream.experiments.compare.separation import FOLDS, GAP, blocks_of, rows_of_fold
from dqmstream.experiments.simulator import LIVE, interpolate, stream
from dqmstream.lumisection import he_depth1_mask, ieta_row, rbx_mask
from tests.scale import SOAK, scaled

PAIRS = scaled(4, 40)
LUMISECTIONS = 400


@pytest.fixture(scope="module")
def null() -> list[Comparison]:
    """Pairs of runs between which nothing changed; about one lumisection in 200 is truncated."""
    seeds = range(100, 100 + PAIRS // 4)
    return [known.compare() for seed in seeds for known in stream_pairs("null", seed, LUMISECTIONS)]


@pytest.fixture(scope="module")
def sparse() -> tuple[Known, Comparison]:
    known = sparse_pair(100, LUMISECTIONS)
    return known, known.compare()


def named_at(comparison: Comparison, ieta: int, iphi: int) -> int:
    """Position of a channel."""
    channels = comparison.pair.channels
    return int(np.flatnonzero((channels.ieta == ieta) & (channels.iphi == iphi))[0])


def without_events(run: RunCounts) -> RunCounts:
    return replace(run, events=np.full(len(run.events), np.nan))


def test_where_nothing_changed_nothing_is_named_beyond_the_rate(null: list[Comparison]) -> None:
    most = binom.ppf(0.999, len(null), RATE)
    assert sum(bool(one.channel_tests.changed.any()) for one in null) <= most
    assert sum(bool(one.box_tests.changed.any()) for one in null) <= most


def test_where_nothing_changed_p_values_are_uniform(null: list[Comparison]) -> None:
    for p in (np.concatenate([one.channel_tests.p for one in null]), np.concatenate([one.box_tests.p for one in null])):
        assert kstest(p, "uniform").pvalue > 1e-3
        assert np.mean(p < 0.01) < 0.01 + 4 * np.sqrt(0.01 / len(p))


def test_where_nothing_changed_the_auc_is_chance_within_its_interval(null: list[Comparison]) -> None:
    covered = sum(one.separation.channels.low <= 0.5 <= one.separation.channels.high for one in null)
    assert covered >= binom.ppf(0.001, len(null), 0.95)
    assert abs(np.mean([one.separation.channels.value for one in null]) - 0.5) < 4 * 0.03 / np.sqrt(len(null))


def test_luminosity_that_moves_is_no_change() -> None:
    first, second = redrawn(101, LUMISECTIONS, np.ones(LIVE.shape), events=0.7, pileup=0.8)
    done = compare_pair(pair_of(first, second), RATE)
    assert not done.channel_tests.changed.any()
    assert kstest(done.channel_tests.p, "uniform").pvalue > 1e-3
    assert done.separation.luminosity.above_chance
    assert done.verdict.startswith("Luminosity alone tells these runs apart")
    assert "proves nothing" in done.verdict


def test_the_channels_that_changed_are_named_and_hardly_any_other(sparse: tuple[Known, Comparison]) -> None:
    known, done = sparse
    found = score([known], [done])
    assert found.changed_of_named[0.0] >= 0.9 * found.named
    assert found.found[0.01] >= 0.7 * found.changed[0.01]
    assert found.found[0.1] == found.changed[0.1] == 15
    assert found.dead == (3, 3)
    assert found.boxes_found == found.boxes_moved == found.boxes_named == 1


def test_changed_channels_do_not_make_others_seem_changed(sparse: tuple[Known, Comparison]) -> None:
    known, done = sparse
    assert kstest(done.channel_tests.p[known.gain == 1], "uniform").pvalue > 1e-3


def test_the_same_is_named_where_events_are_unknown(sparse: tuple[Known, Comparison]) -> None:
    known, _ = sparse
    blind = replace(known, first=without_events(known.first), second=without_events(known.second))
    done = blind.compare()
    assert not done.pair.counts_events
    found = score([blind], [done])
    assert found.changed_of_named[0.0] >= 0.9 * found.named
    assert found.found[0.1] == 15 and found.dead == (3, 3)
    assert known.boxes <= set(done.box_names[done.box_tests.changed].tolist())


def test_ratios_are_the_true_ones_within_their_errors() -> None:
    gain = np.ones(LIVE.shape)
    gain[ieta_row(20), 4] = 0.9
    gain[ieta_row(-22), 10] = 1.1
    first, second = redrawn(102, LUMISECTIONS, gain)
    done = compare_pair(pair_of(first, second), RATE)
    for ieta, iphi in ((20, 5), (-22, 11)):
        c = named_at(done, ieta, iphi)
        assert done.channel_tests.changed[c]
        row, column = ieta_row(ieta), iphi - 1
        # A change of gain acts on the rate: the truth for counts is what the response makes of it, a part of the change.
        assert 0 < (done.channel_tests.ratio[c] - 1) / (gain[row, column] - 1) < 1
    back = compare_pair(pair_of(second, first), RATE)
    np.testing.assert_allclose(back.channel_tests.ratio, 1 / done.channel_tests.ratio, rtol=1e-3)
    np.testing.assert_allclose(back.channel_tests.pull, -done.channel_tests.pull, atol=0.1)


def test_a_channel_that_wakes_is_named_alive() -> None:
    gain = np.ones(LIVE.shape)
    gain[ieta_row(25), 6] = 0.0
    first, second = redrawn(103, 200, gain)
    died, woke = compare_pair(pair_of(first, second), RATE), compare_pair(pair_of(second, first), RATE)
    c = named_at(died, 25, 7)
    assert died.died[c] and not died.woke.any() and died.channel_tests.ratio[c] == 0
    assert woke.woke[c] and not woke.died.any() and np.isinf(woke.channel_tests.ratio[c])


def test_a_factor_common_to_all_channels_is_not_seen() -> None:
    first, second = redrawn(104, LUMISECTIONS, np.full(LIVE.shape, 0.9))
    done = compare_pair(pair_of(first, second), RATE)
    assert not done.channel_tests.changed.any()


def test_a_box_is_found_whose_channels_alone_are_not() -> None:
    gain = np.where(rbx_mask(1, 7), 0.99, 1.0)
    first, second = redrawn(105, LUMISECTIONS, gain)
    done = compare_pair(pair_of(first, second), RATE)
    mine = done.pair.channels.box == 7
    assert done.box_names[done.box_tests.changed].tolist() == [7]
    assert done.channel_tests.changed[mine].mean() < 0.5
    assert done.box_tests.ratio[done.box_tests.changed][0] < 1


def test_channels_that_drift_alone_are_no_box_that_moves() -> None:
    gain = np.exp(0.02 * np.random.default_rng(5).standard_normal(LIVE.shape))
    first, second = redrawn(106, LUMISECTIONS, gain)
    done = compare_pair(pair_of(first, second), RATE)
    assert done.channel_tests.changed.mean() > 0.3
    assert done.box_tests.changed.sum() <= 1


def test_a_channel_that_flickers_about_its_old_mean_is_not_named() -> None:
    run, other = stream("null", seed=107, runs=2, lumisections=LUMISECTIONS)
    first, second = counts_of(run), counts_of(other)
    row, column, rng = ieta_row(21), 20, np.random.default_rng(3)
    for one in (first, second):
        counts = one.counts[:, row, column]
        one.counts[:, row, column] = rng.binomial(one.events.astype(int), np.clip(counts / one.events * rng.gamma(25, 1 / 25, len(counts)), 0, 1))  # fmt: skip # noqa: E501
    done = compare_pair(pair_of(first, second), RATE)
    c = named_at(done, 21, 21)
    assert done.rho[c] > 20 * np.median(done.rho)
    assert done.channel_tests.p[c] > 1e-3


def test_runs_that_share_no_conditions_are_compared_within_rings_and_a_warning_says_so() -> None:
    run, other = stream("pair", seed=100, lumisections=LUMISECTIONS)
    counts = other.counts.copy()
    counts[:, ieta_row(21), 8] = 0
    done = compare_pair(pair_of(counts_of(run), replace(counts_of(other), counts=counts)), RATE)
    assert done.by_ring
    assert any("hardly share conditions" in warning for warning in done.warnings)
    assert done.died[named_at(done, 21, 9)]
    assert done.separation.luminosity.value > 0.99


@pytest.mark.skipif(not SOAK, reason="two runs of 4500 rows: with DQMSTREAM_SOAK=1")
def test_interpolated_rows_are_no_new_lumisections() -> None:
    both = []
    for run in stream("null", seed=108, runs=2, lumisections=225):
        counts = np.zeros((4500, 64, 72), dtype=np.float32)
        counts[:, LIVE] = interpolate(run.counts[:, LIVE], 4500)
        both.append(RunCounts(run.run, str(run.run), counts, np.full(4500, np.nan), np.arange(1, 4501), 25))
    done = compare_pair(pair_of(*both), RATE)
    assert not done.channel_tests.changed.any()
    assert kstest(done.channel_tests.p, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("scale", [1, 25])
def test_no_lumisection_that_teaches_is_a_neighbour_of_one_that_is_tested(scale: int) -> None:
    numbers = np.delete(np.arange(1, 400 * scale + 1), np.arange(50, 70))
    sample = Sample(np.ones((len(numbers), 1)), np.ones(len(numbers)), numbers, scale)
    blocks = blocks_of(sample)
    tested = []
    for fold in range(FOLDS):
        teach, judge = rows_of_fold(sample, blocks, fold)
        distance = np.abs(numbers[teach][:, None] - numbers[judge][None, ::scale])
        assert distance.min() > (GAP - 1) * scale  # every scale-th of the tested is looked at
        tested.append(judge)
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(len(numbers)))


def test_readout_boxes_are_those_of_the_detector() -> None:
    channels = Channels(he_depth1_mask()[None])
    for side, n in ((1, 1), (-1, 1), (1, 18), (-1, 9)):
        inside = np.zeros((1, 64, 72), dtype=bool)
        inside[channels.live] = channels.box == side * n
        np.testing.assert_array_equal(inside[0], rbx_mask(side, n) & he_depth1_mask())


def test_moderated_variances_are_one_where_all_vary_by_chance_and_an_outlier_keeps_its_own() -> None:
    dof = 70
    scale = np.random.default_rng(0).chisquare(dof, 900) / dof
    scale[7] = 40.0
    moderated, degrees = moderate(scale, dof)
    assert moderated[7] == 40.0 and degrees[7] == dof
    rest = np.arange(900) != 7
    assert np.abs(moderated[rest] - 1).max() < 0.2
    assert np.median(degrees) > 3 * dof


def test_runs_that_cannot_be_compared_are_refused() -> None:
    run, other = (counts_of(one) for one in stream("null", seed=1, runs=2, lumisections=200))
    short = RunCounts(9, "short", other.counts[:4], other.events[:4], other.lumisection[:4], 1)
    deep = replace(other, name="deep", counts=np.zeros((200, 7, 64, 72)))
    dark = replace(other, name="dark", counts=np.zeros((200, 64, 72)))
    for second, says in (
        (short, "too short: 4 of its 4"),
        (deep, "of one shape"),
        (dark, "no count at all"),
        (run, "same counts"),
    ):
        with pytest.raises(InputError, match=says):
            pair_of(run, second)


def test_events_that_do_not_bound_the_counts_are_not_used() -> None:
    run, other = (counts_of(one) for one in stream("null", seed=1, runs=2, lumisections=200))
    pair = pair_of(run, replace(other, events=other.events / 2))
    assert not pair.counts_events and "count more than its numbers of events" in pair.notes[0]
    # A channel that fires in every event counts as many when rows are interpolated, but for the rounding of float32.
    always = other.counts.copy()
    always[:, 3, 0] = other.events
    pair = pair_of(run, replace(other, counts=always + 0.3, events=other.events + 0.3))
    assert (pair.samples[1].counts.max(axis=1) > other.events + 0.3).any()
    assert pair.counts_events
    pair = pair_of(run, without_events(other))
    assert not pair.counts_events and "are not known" in pair.notes[0]
    pair = pair_of(run, replace(other, run=run.run, counts=other.counts + 0.25))
    assert [note.split()[0] for note in pair.notes][:2] == ["Both", "Counts"]
