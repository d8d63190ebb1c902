"""Alarms keep their rate, and what is off is named, on streams that do not follow the law of the response."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.maps import RunData
from dqmstream.learners.monitoring.alarms import AlarmRates
from dqmstream.learners.monitoring.held_out import held_out
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

RATE = 0.05


def drawn(name: str, runs: int, lumisections: int, seed: int = 0) -> list[RunData]:
    return [as_run_data(run, Split()) for run in stream(name, seed=seed, runs=runs, lumisections=lumisections)]


def learnt(runs: list[RunData]) -> Novelty:
    novelty = Novelty(Geometry(1), 0)
    for number, run in enumerate(runs):
        novelty.learn(number, run, reader(runs))
    return novelty


@pytest.fixture(scope="module")
def flickering() -> tuple[list[RunData], Novelty]:
    """Eight runs in which other channels flicker and a box trips; seven are known."""
    runs = drawn("transient", 8, 200)
    return runs, learnt(runs[:-1])


def test_where_channels_flicker_known_runs_are_flagged_at_the_rate_that_was_asked_for(
    flickering: tuple[list[RunData], Novelty],
) -> None:
    runs, novelty = flickering
    scores = [novelty.score(run.part(Part.TEST)) for run in runs[:-1]]
    alarms = [novelty.new_run_alarms(found, RATE) for found in scores]
    assert all(one.calibrated.all() for one in alarms)
    # Seven blocks, of which .35 are expected; 3 or more have a probability of .004.
    assert np.mean(np.concatenate([one.raised for one in alarms])) < 3 / 7
    # Where a box trips, the bound is far off.
    assert max(found.score.max() for found in scores) > 100
    faults = [novelty.fault_score(run.part(Part.TEST), number) for number, run in enumerate(runs[:-1])]
    of_fault = [novelty.fault_alarms(found.score, np.zeros(len(found.score), dtype=bool), RATE) for found in faults]
    assert np.mean(np.concatenate([found.score for found in faults]) >= np.log(1 / RATE)) > 0.9, "P(no fault) flags them all"
    assert np.mean(np.concatenate([one.raised for one in of_fault])) < 3 / 7


def test_a_new_run_stays_visible_where_other_channels_flicker(flickering: tuple[list[RunData], Novelty]) -> None:
    runs, novelty = flickering
    known = [novelty.score(run.part(Part.TEST)) for run in runs[:-1]]
    assert np.mean([np.mean(found.nearest == number) for number, found in enumerate(known)]) > 0.9
    assert auc(novelty.score(runs[-1].part(Part.TEST)).score, np.concatenate([found.score for found in known])) > 0.8


def test_channels_that_flicker_are_named(flickering: tuple[list[RunData], Novelty]) -> None:
    runs, novelty = flickering
    law = novelty.law_summary()
    assert law is not None and not law["holds"] and law["run"] == runs[-2].run and law["rings"] == []
    counts = runs[-2].maps.counts[:, 0]
    usual = np.median(counts, axis=0)
    out = {tuple(place) for place in np.argwhere((counts == 0).mean(axis=0) * (usual > 0) > 0.05)}
    named = {(c["ieta"] + (32 if c["ieta"] < 0 else 31), c["iphi"] - 1) for c in law["channels"]}
    assert len(named & out) > 10
    assert any("single channels vary much more than their ring" in told for told in law["sentences"])


@pytest.mark.parametrize(("name", "off"), [("null", False), ("structured", False), ("overdispersed", True)])
def test_the_watch_names_rings_whose_counts_vary_more_and_is_silent_within_the_law(name: str, off: bool) -> None:
    """`structured` has modes of readout boxes, which the learner knows."""
    law = learnt(drawn(name, 2, 200, seed=1)).law_summary()
    assert law is not None
    if not off:
        assert law["holds"] and law["sentences"] == []
        return
    assert {19, 20, 21, 22} <= {one["ieta"] for one in law["rings"]}
    assert all(1.3 < one["variance"] < 2.1 for one in law["rings"] if one["ieta"] <= 22)
    assert any("ring |ieta| 19 1." in told for told in law["sentences"])


def test_one_ring_that_varies_more_is_named_alone() -> None:
    runs = make_stream(2, drift=0.0)
    rng = np.random.default_rng(0)
    noisy = [_noisier(run, 22, rng) for run in runs]
    law = learnt(noisy).law_summary()
    assert law is not None
    assert [one["ieta"] for one in law["rings"]] == [22]


def _noisier(run: RunData, ieta: int, rng: np.random.Generator) -> RunData:
    """The same run where the counts of the rings at ± ieta scatter more."""
    counts = run.maps.counts.copy()
    for row in (ieta + 31, 32 - ieta):
        mean = counts[:, :, row].mean(axis=0)
        counts[:, :, row] += 0.5 * np.sqrt(mean) * rng.standard_normal(counts[:, :, row].shape) * (mean > 0)
    return replace(run, maps=replace(run.maps, counts=np.maximum(np.rint(counts), 0)))


def test_held_out_lumisections_are_no_test_no_train_no_blank_and_no_truncated_ones() -> None:
    run = make_stream(1, drift=0.0)[0]
    reference = Reference.fit(run.part(Part.TRAIN))
    plain = np.concatenate([maps.lumisection for maps in held_out(run, reference)])
    place = {int(number): i for i, number in enumerate(run.maps.lumisection)}
    assert {int(run.parts[place[number]]) for number in plain.tolist()} == {Part.VALIDATION, Part.GAP}
    counts = run.maps.counts.copy()
    blank, cut = (place[int(number)] for number in plain[[3, 7]])
    counts[blank] = 0
    counts[cut] = np.rint(0.3 * counts[cut])
    found = held_out(replace(run, maps=replace(run.maps, counts=counts)), reference)
    np.testing.assert_array_equal(np.concatenate([maps.lumisection for maps in found]), np.delete(plain, [3, 7]))


def test_a_run_without_validation_lumisections_adds_no_scores() -> None:
    runs = make_stream(2, drift=0.0)
    bare = replace(runs[1], parts=np.full_like(runs[1].parts, Part.TRAIN))
    one, two = learnt(runs[:1]), learnt([runs[0], bare])
    np.testing.assert_array_equal(two.alarms.new_run.blocks, one.alarms.new_run.blocks)


def test_the_state_is_restored_and_that_of_an_older_version_is_not_calibrated(
    flickering: tuple[list[RunData], Novelty],
) -> None:
    runs, novelty = flickering
    again, state = Novelty(Geometry(1), 0), novelty.state()
    again.restore(state)
    test = runs[-1].part(Part.TEST)
    for one, other in zip(vars(again.score(test)).values(), vars(novelty.score(test)).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.law_summary() == novelty.law_summary()
    assert again.alarms_summary() == novelty.alarms_summary()
    older = Novelty(Geometry(1), 0)
    older.restore({name: array for name, array in state.items() if not name.startswith(("alarms.", "scatter.", "law."))})
    found = older.score(test)
    assert older.alarms.calibrated(0.5) == {"new_run": False, "fault": False}
    np.testing.assert_array_equal(found.p, found.bound)
    with pytest.raises(StateError, match="damaged"):
        AlarmRates().restore({name: array for name, array in state.items() if name.startswith("alarms.fault")})


def test_rare_certain_faults_are_set_aside_where_the_law_holds_and_common_ones_are_what_known_runs_are_like() -> None:
    rng = np.random.default_rng(0)
    length = np.arange(1, 41)

    def learnt_with(faulty: int) -> AlarmRates:
        rates = AlarmRates()
        for run in range(40):
            score = rng.standard_normal(40) - 5 + 70 * (run < faulty)
            rates.add(run, [(score, np.minimum(length, 30))], [(score, length)])
        return rates

    dead, by_model = np.full(40, 65.0), np.full(40, 1e-28)
    rare, common = learnt_with(3), learnt_with(20)
    assert rare.of_fault(dead, length, by_model, 0.01, law_holds=True).raised.all()
    assert not rare.of_fault(dead, length, by_model, 0.01, law_holds=False).raised.any()
    assert not common.of_fault(dead, length, by_model, 0.01, law_holds=True).raised.any()
    assert common.of_fault(2 * dead, length, by_model, 0.01, law_holds=True).raised.all(), "another fault beside the known one"
    assert 0 < rare.summary(True)["fault"]["set_aside"] < 0.1 and common.summary(True)["fault"]["set_aside"] == 0
