"""An empty, truncated or saturated lumisection does not affect the scores of the rest of its run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.faults.autodqm import BetaBinomial
from dqmstream.experiments.faults.learned import FaultFlags, NewRun
from dqmstream.experiments.faults.residuals import ZScore
from dqmstream.learners.blank import blank, informative
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.monitoring.stretches import WINDOW
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import CLOSED_FORMS, NAMES, make_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry, he_depth1_mask, ieta_row
from tests.learners.streams import draw_run, make_stream, reader

TINY = Recipe(dim=16, depth=1, heads=2, experts=2, steps=11, batch=32, lr=3e-3, fisher_samples=4)
KINDS = ("empty", "full", "overflow", "absurd", "truncated")
BLANK = ("empty", "full", "overflow", "absurd")
SURE = np.log(99)
"""Log-odds of a fault at the default rate of false alarms."""


def spoilt(run: RunData, kind: str, places: list[int]) -> RunData:
    """A copy of the run with some lumisections spoilt."""
    counts = run.maps.counts.copy()
    for place in places:
        if kind == "truncated":  # N at .1, by the law: as many events, drawn anew
            counts[place] = 0
            rng = np.random.default_rng(place)
            share = run.maps.counts[place] / run.maps.n_events[place]
            counts[place] = rng.binomial(int(run.maps.n_events[place] / 10), np.minimum(share, 1))
        elif kind == "absurd":  # in an archive of before such counts were refused
            counts[place, 0, ieta_row(25), 0] = 3e38
        else:
            value = {"empty": 0.0, "full": run.maps.n_events[place], "overflow": 65535.0}[kind]
            counts[place, 0][he_depth1_mask()] = value
    return replace(run, maps=replace(run.maps, counts=counts))


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    return make_stream(3, drift=0.03, seed=7)


def make(name: str) -> Strategy:
    return make_strategy(name, geometry=Geometry(1), seed=0, recipe=TINY, memory_bytes=400_000, device="cpu")


def test_empty_saturated_and_impossible_maps_are_blank_and_others_are_not(runs: list[RunData]) -> None:
    for kind in KINDS:
        told = blank(spoilt(runs[0], kind, [50]).maps.counts)
        assert np.flatnonzero(told).tolist() == ([50] if kind in BLANK else [])
    counts = np.full((4, 1, 64, 72), 700.0)
    np.testing.assert_array_equal(informative(counts), np.arange(4))  # a part of the detector that is always full
    counts[1] = 0
    np.testing.assert_array_equal(informative(counts), [0, 2, 3])
    np.testing.assert_array_equal(informative(np.zeros((3, 1, 64, 72))), np.arange(3))
    assert informative(counts[:0]).tolist() == []


@pytest.mark.parametrize("name", NAMES)
def test_no_strategy_learns_a_blank_lumisection_or_names_a_run_for_one(name: str, runs: list[RunData]) -> None:
    """Runs with blank lumisections give the same bits as the same runs without them."""
    with_blanks, without = make(name), make(name)
    dirty, clean = [], []
    for number, run in enumerate(runs[:2]):
        for kind, places in (("empty", [3, 4, 60, 125]), ("full", [20]), ("overflow", [21]), ("absurd", [22])):
            run = spoilt(run, kind, places)
        keep = np.setdiff1d(np.arange(len(run.maps)), [3, 4, 60, 125, 20, 21, 22])
        dirty.append(run)
        clean.append(RunData(run.run, run.maps.take(keep), run.parts[keep]))
        with_blanks.learn(number, dirty[number], reader(dirty))
        without.learn(number, clean[number], reader(clean))
    assert with_blanks.state().keys() == without.state().keys()
    for key, array in without.state().items():
        np.testing.assert_array_equal(with_blanks.state()[key], array, err_msg=key)
    scores = with_blanks.scores(dirty[1].maps)
    assert np.isfinite(scores).all()
    assert not scores[[3, 4, 60, 125, 20, 21, 22]].any()


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_truncated_lumisection_in_training_hardly_changes_the_runs_named(name: str, runs: list[RunData]) -> None:
    known, other = make(name), make(name)
    stream = [spoilt(run, "truncated", [30]) for run in runs]
    for number in range(2):
        known.learn(number, runs[number], reader(runs))
        other.learn(number, stream[number], reader(stream))
    test = [run.part(Part.TEST) for run in runs[:2]]
    named = [[strategy.scores(maps).argmax(axis=1) for maps in test] for strategy in (known, other)]
    assert np.isfinite(other.scores(stream[1].maps)).all()
    if name != "ring_means":  # luminosity alone: it guesses
        assert np.mean(np.concatenate(named[0]) != np.concatenate(named[1])) <= 0.1


@pytest.mark.parametrize(("kind", "size"), [("empty", 400), ("full", 160), ("overflow", 160), ("truncated", 160)])
def test_a_dead_channel_is_found_in_each_lumisection_whatever_was_blank_before(kind: str, size: int) -> None:
    rng = np.random.default_rng(11)
    gain = np.exp(0.08 * rng.standard_normal(932))
    first, second = (spoilt(draw_run(gain, rng, size, run), kind, [10]) for run in (1, 2))
    second.maps.counts[100:, 0, ieta_row(25), 0] = 0
    faults = FaultScore(Reference.fit(first.part(Part.TRAIN)))
    faults.learn(first.part(Part.TRAIN))
    plain, dirty = (faults.score(run.maps) for run in (second, spoilt(second, kind, [50, 51, 130])))
    rest = np.setdiff1d(np.arange(size), [50, 51, 130])
    assert np.isfinite(dirty.score).all() and np.isfinite(dirty.channels).all()
    np.testing.assert_array_equal(rest[dirty.score[rest] >= SURE], rest[rest >= 100])
    dead = int(np.flatnonzero(faults.reference.to_map(np.arange(932.0)[None])[0, 0, ieta_row(25), 0] == np.arange(932))[0])
    assert (dirty.channels[rest[rest >= 100], dead] >= SURE).all()
    np.testing.assert_allclose(dirty.channels[rest, dead], plain.channels[rest, dead], atol=4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_blank_lumisections_do_not_change_the_new_run_score_of_the_rest(kind: str, runs: list[RunData]) -> None:
    novelty = Novelty(Geometry(1), 0)
    for number in range(2):
        novelty.learn(number, spoilt(runs[number], kind, [2, 70]), reader(runs))
    for run in (runs[1], runs[2]):
        maps = run.maps
        dirty = spoilt(run, kind, [80, 81]).maps
        without = maps.take(np.setdiff1d(np.arange(200), [80, 81]))
        rest = np.setdiff1d(np.arange(200), [80, 81])
        found, wanted = novelty.score(dirty), novelty.score(without)
        assert np.isfinite(found.score).all()
        clear = (rest < 80) | (rest > 80 + WINDOW)  # in between, windows reach back by two lumisections less
        np.testing.assert_allclose(found.score[rest][clear], novelty.score(maps).score[rest][clear], rtol=1e-6)
        at_once = (found.p <= 0.01)[rest] != (wanted.p <= 0.01)
        assert np.mean(at_once) <= 0.02
        deviation = novelty.deviation(dirty)
        assert np.isfinite(deviation.pull).all()
        assert np.abs(deviation.pull - novelty.deviation(without).pull).max() < (1e-6 if kind in BLANK else 1.0)


def test_a_run_of_blank_lumisections_has_no_score_and_no_fault(runs: list[RunData]) -> None:
    novelty = Novelty(Geometry(1), 0)
    for number in range(2):
        novelty.learn(number, runs[number], reader(runs))
    dark = replace(runs[2].maps, counts=np.zeros_like(runs[2].maps.counts))
    assert (novelty.score(dark).p == 1).all()
    assert not novelty.deviation(dark).pull.any()
    assert (novelty.faults.score(dark).score < SURE).all()


def test_a_detector_with_most_boxes_dark_is_faulty_and_not_blank() -> None:
    """With more than half of the readout boxes off, the rest still fixes the number of events."""
    rng = np.random.default_rng(3)
    gain = np.exp(0.08 * rng.standard_normal(932))
    first, second = (draw_run(gain, rng, 200, run) for run in (1, 2))
    faults = FaultScore(Reference.fit(first.part(Part.TRAIN)))
    faults.learn(first.part(Part.TRAIN))
    second.maps.counts[100:, 0, :32] = 0
    second.maps.counts[100:, 0, :, :20] = 0
    found = faults.score(second.maps)
    assert (found.score[:100] < SURE).all() and (found.score[100:] > SURE).all()
    off = ~(second.maps.counts[150][faults.reference.live] > 0)
    assert (found.channels[150, off] > SURE).all()
    assert np.mean(found.channels[150, ~off] < SURE) > 0.95  # the others share a readout box with dead ones


def test_empty_lumisections_are_not_evaluated(runs: list[RunData]) -> None:
    strategy, evaluator, clean = make("gain_map"), Evaluator(), Evaluator()
    dirty = [spoilt(run, "empty", list(range(155, 175))) for run in runs[:2]]
    for number in range(2):
        strategy.learn(number, dirty[number], reader(dirty))
        evaluator.add(dirty[number])
        keep = np.setdiff1d(np.arange(200), np.arange(155, 175))
        clean.add(RunData(dirty[number].run, dirty[number].maps.take(keep), dirty[number].parts[keep]))
    scores = evaluator.score(strategy)
    np.testing.assert_array_equal(scores.log_probability, clean.score(strategy).log_probability)
    assert len(scores.labels) == 20


@pytest.mark.parametrize("detector", [lambda: ZScore(True), FaultFlags, lambda: NewRun(0), BetaBinomial])
@pytest.mark.parametrize("kind", BLANK)
def test_detectors_of_the_fault_benchmark_accept_blank_lumisections(detector, kind: str, runs: list[RunData]) -> None:
    one = detector()
    for run in runs[:2]:
        one.learn(spoilt(run, kind, [5]).maps)
    dirty = one.look(spoilt(runs[2], kind, [7]).maps.take(np.arange(12)))
    rest = np.setdiff1d(np.arange(12), [7])
    without = one.look(runs[2].maps.take(rest))
    assert np.isfinite(dirty.score).all() and np.isfinite(dirty.channels).all()
    np.testing.assert_allclose(dirty.score[rest], without.score, rtol=1e-3, atol=1.0)


def test_a_reference_run_of_empty_lumisections_is_refused() -> None:
    dark = np.zeros((30, 1, 64, 72), dtype=np.float32)
    with pytest.raises(InputError, match="no counts"):
        Reference.fit(Maps(dark, np.zeros(30), np.zeros(30), np.arange(30)))
