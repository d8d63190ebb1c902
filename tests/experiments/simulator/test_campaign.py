"""The stream `campaign`: conditions as in data taking, runs of their own lengths, and a null twin with a constant detector."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec
from dqmstream.experiments.benchmark.summary import summarise
from dqmstream.experiments.benchmark.text import title
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.simulator import LIVE, SimulatedRun, fingerprint, simulated_run, stream
from dqmstream.experiments.simulator.conditions import run_numbers
from dqmstream.experiments.simulator.detector import OFF_THEIR_RING
from dqmstream.experiments.simulator.fills import ERAS, LEVEL, fill, own_length
from dqmstream.experiments.simulator.streams import named_stream
from dqmstream.experiments.simulator.stretches import KINDS, stretch
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.lumisection import ieta_row
from tests.experiments.simulator.test_streams import digest

FILLS = [fill(seed, number) for seed in (0, 1) for number in range(40)]


def test_the_stream_keeps_its_bits() -> None:
    """If a new NumPy draws other numbers, published figures are of a stream that no longer exists: measure them again."""
    assert digest(stream("campaign", seed=101, runs=6, lumisections=40)) == "2ce6c503a5d4e68c"
    assert digest(stream("campaign-null", seed=101, runs=6, lumisections=40)) == "b418058319ac6c85"


def test_runs_are_as_long_as_real_ones() -> None:
    lengths = np.array([own_length(seed, index) for seed in (0, 1, 2) for index in range(300)])
    assert 47 <= np.median(lengths) <= 65
    assert lengths.min() == 6 and lengths.max() <= 2800
    assert np.quantile(lengths, [0.1, 0.25, 0.75, 0.9]) == pytest.approx([9, 24, 150, 400], rel=0.25)  # measured: 2024
    assert (lengths > 1000).any()


def test_a_run_is_cut_to_the_length_that_is_asked_for_and_never_made_longer() -> None:
    own = [len(run.counts) for run in stream("campaign", seed=1, runs=8)]
    assert own == [own_length(1, index) for index in range(8)]
    for run, short in zip(stream("campaign", seed=1, runs=8), stream("campaign", seed=1, runs=8, lumisections=50), strict=True):
        assert len(short.counts) == min(len(run.counts), 50) == short.truth["lumisections"]
        assert np.array_equal(short.pileup, run.pileup[:50]) and short.truth["live"] == run.truth["live"][:50]


def test_pileup_rises_from_1_is_scanned_levelled_for_hours_and_falls() -> None:
    for one in FILLS:
        pileup = one.pileup
        ramp = pileup[: int(np.argmax(pileup > LEVEL[0] - 1))]
        assert pileup[0] == pytest.approx(1, rel=0.02) and 60 <= len(ramp) <= 100
        plateau = np.median(ramp)
        dips = np.sum(ramp[10:] < 0.7 * plateau)
        assert 8 <= dips <= 14
        assert 31.6 < pileup[-1] < 54.6
        level = pileup[len(ramp) + 10 : len(ramp) + 300]
        assert 0.2 < level.std() < 0.45 and LEVEL[0] - 0.5 < level.mean() < LEVEL[1] + 0.5


def test_runs_cut_a_fill_without_a_gap_and_eras_follow_each_other() -> None:
    for one in FILLS:
        pieces = [one.run(place) for place in range(len(one.starts))]
        assert pieces[0].start == 0 and pieces[-1].stop == len(one.pileup)
        assert all(before.stop == after.start for before, after in pairwise(pieces))
    assert list(dict.fromkeys(one.events for one in FILLS)) == list(ERAS)


def drawn(name: str = "campaign") -> Iterator[SimulatedRun]:
    """Long runs of two seeds."""
    for seed in (0, 1):
        for index in range(60):
            if own_length(seed, index) > 200:
                yield simulated_run(name, index, seed=seed)


@pytest.fixture(scope="module")
def long_runs() -> list[SimulatedRun]:
    return list(drawn())


def test_events_are_a_constant_of_the_era_times_the_live_fraction(long_runs: list[SimulatedRun]) -> None:
    for run in long_runs:
        live, n = np.array(run.truth["live"]), run.events
        mean = run.truth["era"]["events"] * live
        assert ((n == 0) == (live == 0)).all()
        lit = live > 0
        pull = (n[lit] - mean[lit]) / np.sqrt(mean[lit])
        assert abs(pull.mean()) < 5 / np.sqrt(lit.sum()) and pull.std() == pytest.approx(1, abs=0.15)
        # In runs at one pileup it is the live fraction that moves the number of events.
        if np.ptp(run.pileup) < 3 and len(run.truth["truncated"]) > 2:
            assert np.corrcoef(n, live)[0, 1] > 0.9


def test_some_lumisections_are_empty_or_truncated_and_flags_say_why(long_runs: list[SimulatedRun]) -> None:
    empty = [int((run.events == 0).sum()) for run in long_runs]
    assert min(empty) == 0 and 5 < max(empty) <= 22
    share = [len(run.truth["truncated"]) / len(run.events) for run in long_runs]
    assert 0.002 < np.median(share) < 0.025 and max(share) < 0.12
    steps = [np.mean(np.abs(np.diff(run.events)) > 0.2 * np.maximum(run.events[:-1], 1)) for run in long_runs]
    assert 0.01 < np.median(steps) < 0.09
    for run in long_runs:
        flags = {name: flag_of(ranges, len(run.events)) for name, ranges in run.truth["flags"].items()}
        down = [~flag for name, flag in flags.items() if name != "beams_stable"]
        assert len(down) == 4 and (np.sum(down, axis=0) == (run.events == 0)).all()
        cut = [int(one["lumisection"]) - 1 for one in run.truth["truncated"]]
        assert (run.events[cut] > 0).all() and (run.events[cut] < 0.75 * np.median(run.events)).all()


def flag_of(ranges: list[list[int]], lumisections: int) -> np.ndarray:
    number = np.arange(1, lumisections + 1)
    return np.any([(first <= number) & (number <= last) for first, last in ranges] or [number < 0], axis=0)


def test_the_null_twin_has_the_same_conditions_and_a_detector_that_never_changes() -> None:
    twins = list(stream("campaign-null", seed=2, runs=6, lumisections=60))
    for run, twin in zip(stream("campaign", seed=2, runs=6, lumisections=60), twins, strict=True):
        assert run.run == twin.run and np.array_equal(run.events, twin.events) and np.array_equal(run.pileup, twin.pileup)
        assert np.array_equal(twin.rate, twins[0].rate) and not twin.faults
    assert not np.array_equal(run.rate, twin.rate)


def test_channels_off_their_ring_have_their_measured_gains() -> None:
    plain, real = fingerprint(3), fingerprint(3, off_their_ring=True)
    places = tuple(np.array([(ieta_row(ieta), iphi - 1) for ieta, iphi, _ in OFF_THEIR_RING]).T)
    assert LIVE[places].all()
    assert real[places].tolist() == [gain for _, _, gain in OFF_THEIR_RING]
    assert np.sum(plain != real) == len(OFF_THEIR_RING)
    first = simulated_run("campaign", 0, seed=3, lumisections=2)
    strong = first.rate[ieta_row(19), 57] / np.median(first.rate[ieta_row(19)][LIVE[ieta_row(19)]])
    assert strong == pytest.approx(1.6, rel=0.02)


def test_the_bounds_hold_and_runs_that_are_too_short_are_left_out_for_every_strategy_alike() -> None:
    spec = TableSpec(
        streams=("campaign",), strategies=("ideal", "ideal_profiled", "gain_map"), seeds=(1,), runs=12, lumisections=200,
        evaluation_samples=120,
    )  # fmt: skip
    records = {cell: cell.compute() for cell in spec.cells()}
    ideal, *others = records.values()
    numbers = run_numbers(named_stream("campaign"), 1, 12)
    assert own_length(1, 5) == 6 and str(numbers[5]) in ideal["left_out"]
    assert len(ideal["lines"]) + len(ideal["left_out"]) == 12
    for other in others:
        assert other["left_out"] == ideal["left_out"]
        assert 2 / len(ideal["lines"]) < accuracy(other) < accuracy(ideal) + 0.05
    assert accuracy(ideal) > 0.75  # a run of 19 lumisections has one of test
    null = BenchmarkCell("campaign-null", 1, 0, "ideal", 12, 200, 1_000_000, 120).compute()
    assert accuracy(null) == pytest.approx(1 / len(null["lines"]))
    (table,) = summarise(Benchmark((spec.checked(),)), records)["tables"]
    learnt = len(ideal["lines"])
    assert all(row["guessing"]["estimate"] == pytest.approx(1 / learnt) for row in table["streams"][0]["rows"])
    assert f"12 runs of 200 lumisections, of which {learnt} are long enough to be learnt" in title(table)


def accuracy(record: Record) -> float:
    return float(np.mean(HistoryLine.from_json(record["lines"][-1]).accuracy or []))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_of_a_fill_has_the_length_and_the_empty_lumisections_that_are_asked_for(kind: str) -> None:
    for n in (20, 200):
        drawn = stretch(kind, n, np.random.default_rng(1), events=1100, empty=2)
        assert drawn.events.shape == drawn.pileup.shape == (n,)
        assert (drawn.events == 0).sum() == 2 and (drawn.pileup > 0).all()
        assert 1000 < np.median(drawn.events) < 1100


def test_another_kind_of_stretch_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of ramp, level, fall, tail, low"):
        stretch("up", 20, np.random.default_rng(1))
