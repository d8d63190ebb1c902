"""Two runs compared as they are taken: level and low pileup, empty, truncated, few lumisections, channels off their ring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare import RATE, Known, real_pair
from dqmstream.experiments.compare.compare import compare_pair
from dqmstream.experiments.compare.comparison import Comparison
from dqmstream.experiments.compare.differences import Ground
from dqmstream.experiments.compare.estimate import moderate
from dqmstream.experiments.compare.pair import pair_of
from dqmstream.experiments.compare.run_counts import RunCounts
from dqmstream.experiments.compare.separation import Auc, Separation
from dqmstream.experiments.compare.verdict import told_apart
from dqmstream.experiments.simulator import LIVE, draw_counts
from dqmstream.experiments.simulator.detector import OFF_THEIR_RING
from dqmstream.experiments.simulator.stretches import rate_per_pileup, stretch
from dqmstream.lumisection import IETA, ieta_row

REAL = Path(__file__).parents[4] / "shared" / "real"
DEAD = (20, 31)
WEAK = (-22, 11)


def run(number: int, kind: str, lumisections: int, gain: np.ndarray | float = 1.0, seed: int = 0) -> RunCounts:
    """A run of a kind of pileup, with the rates of seed 100 times a gain, (64, 72)."""
    rng = np.random.default_rng((seed, number))
    given = stretch(kind, lumisections, rng)
    counts = draw_counts(rate_per_pileup(100) * gain, given.events, given.pileup, rng).astype(np.float32)
    return RunCounts(number, f"run {number}", counts, given.events, np.arange(1, lumisections + 1), 1)


def changed_gain() -> np.ndarray:
    """A channel dead, and one at .6."""
    gain = np.ones(LIVE.shape)
    gain[ieta_row(DEAD[0]), DEAD[1] - 1] = 0.0
    gain[ieta_row(WEAK[0]), WEAK[1] - 1] = 0.6
    return gain


def edited(one: RunCounts, lumisections: slice, ietas: list[int] | None, factor: float, *, events: bool = False) -> RunCounts:
    """The run with counts of some lumisections and rings multiplied and rounded, and their events as well."""
    counts, number = one.counts.copy(), one.events.copy()
    rows = np.flatnonzero(np.ones(64) if ietas is None else np.isin(np.abs(IETA), ietas))
    counts[lumisections, rows[:, None]] = np.round(counts[lumisections, rows[:, None]] * factor)
    if events:
        number[lumisections] = np.round(number[lumisections] * factor)
    return replace(one, counts=counts, events=number)


def place(done: Comparison, ieta: int, iphi: int) -> int:
    channels = done.pair.channels
    return int(np.flatnonzero((channels.ieta == ieta) & (channels.iphi == iphi))[0])


@pytest.mark.parametrize("known", [True, False])
def test_a_channel_that_counts_in_every_event_of_both_runs_is_left_out_and_all_others_are_compared(known: bool) -> None:
    both = [run(number, "fall", 200, gain) for number, gain in ((1, 1.0), (2, changed_gain()))]
    for one in both:
        one.counts[:, ieta_row(28), 2] = one.events
    pair = pair_of(*(one if known else replace(one, events=np.full(200, np.nan)) for one in both))
    done = compare_pair(pair, RATE)
    full = place(done, 28, 3)
    assert not done.channel_tests.changed[full]
    assert np.isnan(done.channel_tests.p[full]) == known
    assert done.died[place(done, *DEAD)] and done.channel_tests.changed[place(done, *WEAK)]
    assert done.channel_tests.changed.sum() <= 4 and done.separation is not None


@pytest.mark.parametrize("events_known", [True, False])
def test_where_hardly_a_channel_misses_an_event_the_runs_are_refused_and_a_dead_channel_is_named(events_known: bool) -> None:
    known = real_pair(("level", "level"), 100, saturated=True, events_known=events_known, lengths=[300])
    counts = known.second.counts.copy()
    counts[:, ieta_row(28), 2] = 0
    done = replace(known, second=replace(known.second, counts=counts)).compare()
    assert not done.comparable and done.verdict.startswith("These runs cannot be compared")
    assert np.flatnonzero(done.channel_tests.changed).tolist() == [place(done, 28, 3)]
    assert done.died[place(done, 28, 3)]


def test_channels_far_from_their_ring_are_not_named_where_conditions_differ() -> None:
    """A response that is nearly full compresses a gain of .39 in one run and not in the other."""
    for first, second in (("low", "level"), ("level", "tail"), ("tail", "low")):
        done = compare_pair(pair_of(run(1, first, 100), run(2, second, 100)), RATE)
        assert done.ground is Ground.APART and done.comparable
        assert not any(done.channel_tests.changed[place(done, ieta, iphi)] for ieta, iphi, _ in OFF_THEIR_RING)
        assert done.box_tests.changed.sum() <= 1 and done.channel_tests.changed.sum() <= 1
        assert np.nanmax(np.abs(done.channel_tests.pull)) < 6


def test_what_changed_is_named_where_conditions_differ() -> None:
    done = compare_pair(pair_of(run(1, "low", 100), run(2, "tail", 100, changed_gain())), RATE)
    assert done.ground is Ground.APART
    weak = place(done, *WEAK)
    assert done.channel_tests.changed[weak] and done.channel_tests.ratio[weak] < 0.99
    assert np.flatnonzero(done.died).tolist() == [place(done, *DEAD)]
    back = compare_pair(pair_of(run(2, "tail", 100, changed_gain()), run(1, "low", 100)), RATE)
    assert back.channel_tests.changed[weak] and back.channel_tests.ratio[weak] > 1.01
    assert np.flatnonzero(back.woke).tolist() == [place(back, *DEAD)]


def test_level_runs_of_slightly_different_pileup_have_no_change() -> None:
    """The ratio cannot resolve 1 % of pileup, which moves dim rings more than bright ones."""
    rng, both = np.random.default_rng(3), []
    for number, pileup in ((1, 62.0), (2, 61.4)):
        events = rng.poisson(3500, 300).astype(float)
        counts = draw_counts(rate_per_pileup(100), events, pileup + 0.3 * rng.standard_normal(300), rng)
        both.append(RunCounts(number, str(number), counts, events, np.arange(1, 301), 1))
    done = compare_pair(pair_of(*both), RATE)
    assert done.by_ring and done.channel_tests.changed.sum() <= 1 and not done.box_tests.changed.any()


def test_errors_hold_for_a_short_run_against_a_long_one() -> None:
    """The short run has few blocks of lumisections, and they determine the difference alone."""
    done = compare_pair(pair_of(run(1, "fall", 600, seed=1), run(2, "fall", 30, seed=1)), RATE)
    assert done.ground is Ground.SHARED
    assert np.nanmean(done.channel_tests.p < 0.01) < 0.015
    assert not done.channel_tests.changed.any()


@pytest.mark.parametrize(("first", "second"), [(20, 20), (20, 200), (6, 100)])
def test_a_short_run_is_compared_without_an_auc(first: int, second: int) -> None:
    done = compare_pair(pair_of(run(1, "low", first), run(2, "low", second, changed_gain())), RATE)
    assert done.separation is None and any("There is no AUC" in note for note in done.warnings)
    assert done.died[place(done, *DEAD)]
    assert done.channel_tests.changed.sum() <= 3


def test_empty_lumisections_leave_the_numbers_of_events_known_and_truncated_ones_are_no_change() -> None:
    one, other = run(1, "fall", 200), run(2, "fall", 200, changed_gain())
    gaps = edited(edited(one, slice(40, 80), None, 0.0, events=True), slice(100, 120), None, 0.1, events=True)
    done = compare_pair(pair_of(gaps, other), RATE)
    assert done.pair.counts_events and done.pair.dark[0] >= 40
    assert done.died[place(done, *DEAD)] and done.channel_tests.changed[place(done, *WEAK)]
    assert done.channel_tests.changed.sum() <= 4
    most = compare_pair(pair_of(edited(one, slice(5, 160), None, 0.0, events=True), other), RATE)
    assert most.separation is None and most.died[place(most, *DEAD)]


@pytest.mark.parametrize("events", [True, False])
def test_dead_rings_are_named_and_their_neighbours_are_not(events: bool) -> None:
    one, other = run(1, "fall", 200), run(2, "fall", 200)
    if not events:
        one, other = (replace(it, events=np.full(200, np.nan)) for it in (one, other))
    bright = [26, 27, 28]
    done = compare_pair(pair_of(one, edited(other, slice(None), bright, 0.0)), RATE)
    gone = np.isin(np.abs(done.pair.channels.ieta), bright)
    assert done.died[gone].all()
    assert done.channel_tests.changed[~gone].sum() <= 0.1 * gone.sum()
    both = compare_pair(pair_of(edited(one, slice(None), bright, 0.0), edited(other, slice(None), bright, 0.0)), RATE)
    assert len(both.channel_tests.p) == 932 - gone.sum() and both.channel_tests.changed.sum() <= 2


def test_runs_that_are_nearly_the_same_or_never_vary_have_no_change() -> None:
    one = run(1, "fall", 200)
    less = replace(one, run=2, counts=one.counts[:-1], events=one.events[:-1], lumisection=one.lumisection[:-1])
    assert not compare_pair(pair_of(one, less), RATE).channel_tests.changed.any()
    still = np.repeat(one.counts[:1], 200, axis=0)
    other = still.copy()
    other[0, ieta_row(19), 0] += 1
    unknown = np.full(200, np.nan)
    pair = pair_of(replace(one, counts=still, events=unknown), replace(one, run=2, counts=other, events=unknown))
    assert not compare_pair(pair, RATE).channel_tests.changed.any()


@pytest.mark.parametrize("scale", [np.ones(900), np.full(900, 1e-12), np.concatenate([np.zeros(899), [1.0]])])
def test_variances_that_are_all_alike_are_moderated(scale: np.ndarray) -> None:
    moderated, degrees = moderate(scale, 70)
    assert np.isfinite(moderated).all() and (degrees > 0).all()


def test_all_depths_and_forward_cells_are_compared() -> None:
    rng = np.random.default_rng(3)
    rate = np.exp(rng.normal(0, 0.1, (7, 64, 72))) * np.linspace(0.05, 2, 7)[:, None, None] * (rng.random((7, 64, 72)) < 0.1)
    both = []
    for number in (1, 2):
        events = rng.poisson(1200, 60)
        p = 1 - (1 + np.linspace(7, 3, 60)[:, None, None, None] * rate / 4.75) ** -4.75
        counts = rng.binomial(events[:, None, None, None], p).astype(np.float32)
        both.append(RunCounts(number, str(number), counts, events.astype(float), np.arange(1, 61), 1))
    dead = np.argwhere(rate[0] > 0)[0]
    both[1].counts[:, 0, dead[0], dead[1]] = 0
    done = compare_pair(pair_of(*both), RATE)
    assert (np.abs(done.pair.channels.ieta) > 29).any() and done.comparable
    assert done.died.sum() == 1 and done.channel_tests.changed.sum() <= 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the published runs are not here")
def test_the_published_runs_share_no_conditions_and_are_compared_with_their_rings() -> None:
    maps = np.load(REAL / "digitised_mean_maps.npz")
    both = []
    for number, events in ((355456, 1510), (357479, 952)):
        rng = np.random.default_rng(number)
        n = rng.poisson(events, 50)
        counts = rng.binomial(n[:, None, None], maps[f"run{number}"] / events).astype(np.float32)
        both.append(RunCounts(number, str(number), counts, n.astype(float), np.arange(1, 51), 1))
    known = Known(both[0], both[1], np.ones(932), frozenset())
    done = known.compare()
    assert done.ground is Ground.APART and done.comparable
    assert sum(done.channel_tests.changed[place(done, ieta, iphi)] for ieta, iphi, _ in OFF_THEIR_RING) <= 1


@pytest.mark.parametrize(
    ("channels", "luminosity", "changed", "said"),
    [
        ((0.72, 0.504, 1.0), (0.74, 0.48, 1.0), False, "no better than luminosity alone (0.740"),
        ((0.72, 0.504, 1.0), (0.60, 0.48, 0.8), False, "yet no channel by itself is found to have changed"),
        ((0.72, 0.504, 1.0), (0.60, 0.48, 0.8), True, "the channels differ"),
        ((0.55, 0.45, 0.7), (0.50, 0.40, 0.6), False, "Nothing tells these runs apart"),
        ((1.0, 0.9, 1.0), (0.95, 0.9, 1.0), True, "Luminosity alone tells these runs apart"),
    ],
)
def test_the_verdict_claims_no_change_that_luminosity_or_chance_explains(
    channels: tuple[float, float, float], luminosity: tuple[float, float, float], changed: bool, said: str
) -> None:
    assert said in told_apart(Separation(Auc(*channels), Auc(*luminosity), (7, 7)), changed=changed, by_ring=True)
