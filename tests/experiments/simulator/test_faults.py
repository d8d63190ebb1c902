"""Faults are in the data as the truth tells them: where, by how much, from when, until which repair."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmstream.experiments.simulator import LIVE, SimulatedRun, nominal_rate, simulated_run, stream
from dqmstream.experiments.simulator.fault_locations import MODULES, box, channel, hem1516, module
from dqmstream.experiments.simulator.faults import ANOMALY_MULTIPLIERS, Fault, apply
from dqmstream.experiments.simulator.streams import STREAMS
from dqmstream.lumisection import IETA, IPHI, ieta_row, rbx_mask

PERSISTENT = {"dead", "degraded", "hot", "module", "box", "hem15/16"}


@pytest.fixture(scope="module")
def tracks() -> list[SimulatedRun]:
    return list(stream("tracks", seed=6, lumisections=120))


def channels_of(told: dict[str, object]) -> np.ndarray:
    """Channels of a fault in truth.json, bool (64, 72)."""
    mask = np.zeros(LIVE.shape, dtype=bool)
    for ieta, iphi in told["channels"]:  # type: ignore[attr-defined]
        mask[ieta_row(ieta), iphi - 1] = True
    return mask


def test_every_kind_of_fault_comes_with_the_factor_of_the_field_notes(tracks: list[SimulatedRun]) -> None:
    factors = defaultdict(set)
    for run in tracks:
        for fault in run.faults:
            factors[fault.kind].add(fault.factor)
    assert set(factors) == PERSISTENT | {"flicker", "anomaly"}
    for off in ("dead", "module", "hem15/16", "flicker"):
        assert factors[off] == {0.0}
    assert factors["hot"] == {2.0}
    assert all(0.2 <= factor <= 0.8 for factor in factors["degraded"])
    assert all(0.80 <= factor <= 0.95 for factor in factors["box"])
    assert factors["anomaly"] == set(ANOMALY_MULTIPLIERS)


def test_places_are_those_of_the_detector() -> None:
    assert box(1, 5).channels.sum() == (rbx_mask(1, 5) & LIVE).sum() == 26
    hem = hem1516().channels
    assert {int(i) for i in IETA[hem.any(axis=1)]} == set(range(-29, -18))
    assert {int(i) for i in IPHI[hem.any(axis=0)]} == set(range(55, 63))
    sizes = set()
    for numbers in MODULES:
        cells = module(*numbers).channels
        rows, columns = np.nonzero(cells)
        assert len({column // 2 for column in columns}) == 1 and len(set(np.sign(IETA[rows]))) == 1
        assert not (cells[:, :-1] & cells[:, 1:]).any() and not (cells[:-1] & cells[1:]).any()  # they alternate
        sizes.add(int(cells.sum()))
    assert sizes == {5, 6, 7}
    assert np.array_equal(np.sum([module(*numbers).channels for numbers in MODULES], axis=0), LIVE)


def test_counts_follow_their_expectation_with_the_faults_of_each_lumisection(tracks: list[SimulatedRun]) -> None:
    squares = n = 0.0
    for run in tracks[::4]:
        mean = run.expected_with_faults()
        variance = mean * (1 - mean / run.events[:, None, None])
        random = variance > 0
        off = run.counts - mean
        assert not off[~random].any()
        faulty = run.faulty_channels() & random
        squares += (off[faulty] ** 2 / variance[faulty]).sum()
        n += faulty.sum()
        assert (off[random] ** 2 / variance[random]).mean() == pytest.approx(1, abs=0.02)
    assert n > 1000
    assert squares / n == pytest.approx(1, abs=6 * np.sqrt(2 / n))


def test_labels_masks_and_the_written_truth_say_the_same(tracks: list[SimulatedRun]) -> None:
    for run in tracks:
        channels = run.faulty_channels()
        assert np.array_equal(run.faulty, channels.any(axis=(1, 2)))
        assert not channels[:, ~LIVE].any()
        told = np.zeros_like(channels)
        for fault in json.loads(json.dumps(run.truth))["faults"]:
            for first, last in fault["lumisections"]:
                told[first - 1 : last] |= channels_of(fault)
        assert np.array_equal(told, channels)


def test_a_lumisection_differs_from_a_good_one_in_its_faulty_channels_and_no_others(tracks: list[SimulatedRun]) -> None:
    for run in tracks[:10]:
        changed = run.expected_with_faults() != run.expected(run.events, run.pileup)
        assert not (changed & ~run.faulty_channels()).any()
        assert np.array_equal(changed.any(axis=(1, 2)), run.faulty)


def test_both_labels_are_common_in_tracks(tracks: list[SimulatedRun]) -> None:
    share = np.mean([run.faulty.mean() for run in tracks])
    assert 0.2 < share < 0.5
    assert all(0 < run.faulty.sum() < len(run.faulty) for run in tracks)


def test_persistent_faults_act_without_a_break_until_the_repair_and_then_the_channel_counts_again() -> None:
    came_back = 0
    runs = list(stream("tracks", seed=1, runs=24, lumisections=100))
    for index, run in enumerate(runs):
        for fault in run.faults:
            if fault.kind not in PERSISTENT:
                continue
            acts = np.flatnonzero(fault.active)
            assert np.array_equal(acts, np.arange(acts[0], acts[-1] + 1))
            born_before = fault.since_run != run.run
            assert acts[0] == 0 or not born_before
            if born_before:
                assert fault.since_run == runs[index - 1].run
            if acts[-1] == 99 and index < 23:  # went on, or was repaired just at the end
                later = [f for f in runs[index + 1].faults if f.since_run == fault.since_run and f.kind == fault.kind]
                assert all(f.factor == fault.factor and np.array_equal(f.channels, fault.channels) for f in later)
            alone = ~run.faulty_channels()[acts[-1] + 1 :, fault.channels].any(axis=1)
            if fault.factor == 0 and alone.any():
                assert not run.counts[acts][:, fault.channels].any()
                assert run.counts[acts[-1] + 1 :, fault.channels][alone].min() > 0
                came_back += 1
    assert came_back > 5


def test_a_repaired_channel_of_a_year_counts_again_at_the_gain_that_its_walk_has_reached() -> None:
    runs = [simulated_run("year", index, seed=3, lumisections=4) for index in range(30, 60)]
    since: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        for fault in run.faults:
            if fault.kind == "dead":
                since[fault.since_run, fault.location.name].append(index)
                assert fault.active.all()
                assert not run.counts[:, fault.channels].any()
    assert len(since) > 10
    repaired = 0
    for (_, name), present in since.items():
        assert present == list(range(present[0], present[-1] + 1))
        row_column = next(f.channels for f in runs[present[0]].faults if f.location.name == name)
        if present[-1] + 1 < len(runs):
            after = runs[present[-1] + 1]
            if not after.faulty_channels()[0][row_column].any():
                assert after.rate[row_column][0] > 0.5 * nominal_rate()[row_column][0]
                assert after.counts[:, row_column].any()
                repaired += 1
    assert repaired > 5


def test_a_channel_that_flickers_drops_out_and_comes_back_for_a_quarter_of_the_time() -> None:
    out, of = 0, 0
    for index in range(40):
        run = simulated_run("tracks", index, seed=7, lumisections=300)
        for fault in run.faults:
            if fault.kind == "flicker":
                acts = np.flatnonzero(fault.active)
                out, of = out + len(acts), of + acts[-1] - acts[0] + 1
                assert not run.counts[fault.active][:, fault.channels].any()
    assert of > 500
    assert 0.15 < out / of < 0.4


def test_short_anomalies_are_one_channel_for_three_lumisections_at_most(tracks: list[SimulatedRun]) -> None:
    lengths = []
    for run in tracks:
        for fault in run.faults:
            if fault.kind == "anomaly":
                assert fault.channels.sum() == 1
                acts = np.flatnonzero(fault.active)
                assert acts[-1] - acts[0] + 1 == len(acts)
                lengths.append(len(acts))
    assert len(lengths) == pytest.approx(STREAMS["tracks"].anomaly_p * 40 * 120, rel=0.25)
    shares = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.12)


def test_the_four_streams_list_their_dead_channels_and_boxes_as_faults_of_the_whole_run() -> None:
    for run in stream("moderate", seed=5, runs=12, lumisections=3):
        told = {(cell["ieta"], cell["iphi"]) for cell in run.truth["dead"]}
        assert told == {fault.location.numbers for fault in run.faults if fault.kind == "dead"}
        boxes = {(loss["side"], loss["n"]) for loss in run.truth["rbx"]}
        assert boxes == {fault.location.numbers for fault in run.faults if fault.kind == "box"}
        assert all(fault.active.all() for fault in run.faults)
        assert run.faulty.all() == bool(told or boxes)
        assert np.array_equal(run.expected_with_faults(), run.expected(run.events, run.pileup))


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.sampled_from([0.0, 0.2, 0.8, 2.0]), min_size=1, max_size=5),
    active=st.lists(st.booleans(), min_size=1, max_size=8),
)
def test_faults_on_one_channel_multiply_while_they_act(factors: list[float], active: list[bool]) -> None:
    acts = np.array(active)
    row = ieta_row(25)
    faults = [Fault("degraded", channel(row, 10), factor, acts, since_run=1) for factor in factors]
    rates, on_count = apply(faults, nominal_rate(), len(acts))
    assert (on_count == 1).all()
    here = channel(row, 10).channels[LIVE]
    assert rates[acts][:, here] == pytest.approx(nominal_rate()[row, 10] * np.prod(factors))
    assert (rates[~acts] == nominal_rate()[LIVE]).all()
    assert (rates[:, ~here] == nominal_rate()[LIVE][~here]).all()


@settings(max_examples=40, deadline=None)
@given(active=st.lists(st.booleans(), min_size=1, max_size=20))
def test_the_ranges_of_a_written_fault_are_its_lumisections(active: list[bool]) -> None:
    told = Fault("flicker", channel(ieta_row(-20), 3), 0.0, np.array(active), since_run=1).truth()
    again = np.zeros(len(active), dtype=bool)
    ranges = told["lumisections"]
    for first, last in ranges:  # type: ignore[attr-defined]
        again[first - 1 : last] = True
    assert again.tolist() == active
    assert told["channels"] == [[-20, 4]]
