"""A first run of level pileup: the reference reports its fitted range, has larger errors outside it, and is improved later."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.experiments.simulator import LIVE, draw_counts
from dqmstream.experiments.simulator.stretches import rate_per_pileup, stretch
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.monitoring.novelty import Novelty, RunDeviation
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.law import probability
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.splits import Part, assign
from dqmstream.lumisection import IETA, IPHI, Geometry, he_depth1_mask, readout_box
from tests.learners.streams import reader

RESPONSES = [1.0, 0.25]
"""Factors on the rates: as in the published run (nearly all channels full at a pileup of 62), and a quarter of it."""

BOX = readout_box(IETA[np.nonzero(he_depth1_mask())[0]], IPHI[np.nonzero(he_depth1_mask())[1]])
"""Readout box of each of the 932 channels."""


RING = np.abs(IETA[np.nonzero(he_depth1_mask())[0]])
"""|ieta| of each of the 932 channels."""


def run_of(path: str, seed: int, run: int, response: float = RESPONSES[0], n: int = 400, drift: float = 0.0) -> RunData:
    rng = np.random.default_rng([seed, run])
    rate = rate_per_pileup(seed) * response * np.exp(drift * rng.standard_normal((64, 72)))
    given = stretch(path, n, rng, events=1100, empty=3)
    counts = draw_counts(rate, given.events, given.pileup, rng).astype(np.float32)
    lumisection = np.arange(1, n + 1)
    return RunData(run, Maps(counts[:, None], given.events, given.pileup, lumisection), assign(lumisection))


def fitted(path: str, seed: int, response: float = RESPONSES[0]) -> Reference:
    return Reference.fit(run_of(path, seed, 1, response).part(Part.TRAIN))


def significant(found: RunDeviation) -> int:
    return int(np.sum(np.abs(found.pull) > 4.5))


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("path", ["level", "fall", "ramp", "low"])
def test_the_law_is_chosen_for_counts_that_follow_it_whatever_the_pileup_of_the_first_run(path: str, response: float) -> None:
    assert fitted(path, 3, response).kind == "saturating"


@pytest.mark.parametrize("response", RESPONSES)
def test_residuals_of_a_falling_run_are_standard_normal_after_a_level_or_a_rising_one(response: float) -> None:
    later = run_of("fall", 0, 2, response).maps.counts
    for path in ("level", "ramp"):
        reference = fitted(path, 0, response)
        residuals = reference.residuals(later)
        assert (residuals**2).mean() < 1.1
        assert np.abs(residuals[-100:].mean(axis=0)).max() < 1.0  # with a quadratic: 9


def test_the_fitted_range_is_reported_and_lumisections_outside_it_are_found() -> None:
    reference = fitted("level", 0)
    told = reference.summary()
    assert told["kind"] == "saturating"
    assert 0.98 < told["lowest"] < 1 < told["highest"] < 1.02
    assert not reference.beyond(run_of("level", 0, 2).maps.counts).any()
    beyond = reference.beyond(run_of("fall", 0, 2).maps.counts)
    assert not beyond[:30].any() and beyond[-250:].mean() > 0.98  # but for empty ones
    assert Reference.from_state(reference.state()).summary() == told


def test_errors_grow_with_the_distance_from_the_fitted_range_and_not_inside_it() -> None:
    reference = fitted("level", 0)
    law = reference.fitted
    assert isinstance(law, Saturating)
    plain = Saturating(law.size, law.rate, law.spread, law.at)
    for pileup, least in ((1.0, 1.0), (0.7, 1.0), (0.1, 2.0)):
        counts = law.size * probability(pileup * law.rate)
        at = reference.conditions_of_live(counts[None])
        wider = np.median(law.expected(at).deviation / plain.expected(at).deviation)
        assert wider == 1.0 if pileup == 1.0 else wider > least


@pytest.mark.parametrize("response", RESPONSES)
def test_after_a_level_run_nothing_is_found_in_a_run_that_differs_only_in_pileup(response: float) -> None:
    level, falling = (run_of(path, 0, run, response) for run, path in enumerate(("level", "fall")))
    novelty = Novelty(Geometry(1), 0)
    novelty.learn(0, level, reader([level]))
    for run in (falling, run_of("level", 0, 5, response)):
        assert (novelty.score(run.maps).p <= 0.01).sum() == 0
        assert significant(novelty.deviation(run.part(Part.TEST))) == 0
        assert (novelty.faults.score(run.maps.take(np.arange(0, 400, 8))).score < np.log(99)).all()
    dead = run_of("fall", 0, 6, response)
    dead.maps.counts[:, *np.argwhere(novelty.live)[400]] = 0
    found = novelty.deviation(dead.part(Part.TEST))
    assert np.abs(found.pull).argmax() == 400 and found.pull[400] < -10


def test_a_later_run_fixes_rates_that_the_first_left_open_and_old_expectations_stay() -> None:
    """A ramp from a pileup of 1 fixes the rates of channels that are full at 62."""
    level, ramp = run_of("level", 1, 1), run_of("ramp", 1, 2)
    first = Reference.fit(level.part(Part.TRAIN))
    second = first.updated_by(ramp.part(Part.TRAIN))
    assert second is not first and second.summary()["lowest"] < 0.1
    assert second.updated_by(ramp.part(Part.TRAIN)) is second, "these conditions are fitted now"
    assert first.updated_by(run_of("level", 1, 3).part(Part.TRAIN)) is first
    enough = fitted("fall", 1)
    assert enough.updated_by(ramp.part(Part.TRAIN)) is enough, "the moving pileup of its first run fixed the law"
    counts = level.part(Part.TEST).counts
    np.testing.assert_allclose(second.expected(counts), first.expected(counts), rtol=2e-3)
    one, other = first.fitted, second.fitted
    assert isinstance(one, Saturating) and isinstance(other, Saturating)
    truth = np.log(run_of("level", 1, 1).maps.pileup.mean() * _rates(1))
    full = one.error > 0.04
    off = [np.abs(np.log(law.rate) - truth)[full] for law in (one, other)]
    assert 250 < full.sum() < 500
    assert np.median(off[1]) < 0.7 * np.median(off[0])
    assert np.median(other.error[full]) < 0.7 * np.median(one.error[full])
    low = run_of("low", 1, 4).maps.counts
    deviations = [reference.response(low[:, reference.live]).deviation for reference in (first, second)]
    assert np.median(deviations[1] / deviations[0]) < 0.5
    assert (second.residuals(low) ** 2).mean() < 1.3


@pytest.mark.parametrize("since", [0, 250])
@pytest.mark.parametrize("what", ["box", "channels"])
def test_what_fails_in_the_run_that_improves_the_reference_does_not_make_a_later_good_run_look_new(
    what: str, since: int
) -> None:
    """Otherwise the losses of the failed channels would be absorbed into their rates."""
    failing = BOX == 5 if what == "box" else np.random.default_rng(1).random(932) < 0.04
    factor = 0.8 if what == "box" else 1.5
    level, teaching = run_of("level", 0, 1, RESPONSES[1]), run_of("ramp", 0, 2, RESPONSES[1])
    _fail(teaching, failing, factor, since)
    novelty = Novelty(Geometry(1), 0)
    novelty.learn(0, level, reader([]))
    first = novelty.statistical.reference.fitted
    novelty.learn(1, teaching, reader([]))
    law = novelty.statistical.reference.fitted
    assert isinstance(first, Saturating) and isinstance(law, Saturating)
    kept = law.rate == first.rate
    # At a level pileup, half as much again is not seen in rings that fire in nearly every event; it moves their rates little.
    seen = failing & (RING <= 24) if (what, since) == ("channels", 250) else failing
    assert kept[seen].mean() > 0.9 and kept[~failing].mean() < 0.02
    np.testing.assert_array_equal(law.error[kept], first.error[kept])

    def rising() -> Maps:
        return run_of("ramp", 0, 7, RESPONSES[1]).maps.take(np.arange(140))

    good = rising()
    assert (novelty.score(good).p <= 0.01).sum() == 0
    assert significant(novelty.deviation(good)) == 0
    bad = rising()
    bad.counts[20:, 0, he_depth1_mask()] *= np.where(BOX == -7, 0.9, 1.0).astype(np.float32)
    assert (novelty.score(bad).p[30:] <= 0.01).all(), "another box that fails there must look new"
    dead = rising()
    dead.counts[20:, *np.argwhere(novelty.live)[400]] = 0
    assert np.abs(novelty.deviation(dead).pull).argmax() == 400
    bright = (dead.pileup > 20) & (dead.n_events > 200)  # not in the scan, where the channel counts little
    assert (novelty.faults.score(dead).channels[bright & (np.arange(140) >= 30), 400] > np.log(99)).all()


def test_a_good_ramp_does_not_look_new_beside_a_level_run_and_a_ramp_with_a_failed_box() -> None:
    """The gains of channels that were full in the level run come from the ramp, by smoothing."""
    level, failed = run_of("level", 0, 1), run_of("ramp", 0, 2)
    _fail(failed, BOX == 5, 0.8, 0, RESPONSES[0])
    novelty = Novelty(Geometry(1), 0)
    for number, run in enumerate((level, failed)):
        novelty.learn(number, run, reader([]))
    good, bad = (run_of("ramp", 0, 7) for _ in range(2))
    assert (novelty.score(good.maps.take(np.arange(140))).p <= 0.01).sum() <= 1
    _fail(bad, BOX == -7, 0.9, 20, RESPONSES[0])
    assert (novelty.score(bad.maps.take(np.arange(140))).p[40:] <= 0.01).all()


def _fail(run: RunData, failing: np.ndarray, factor: float, since: int, response: float = RESPONSES[1]) -> None:
    """Draw some channels of a run of seed 0 at another rate, from a lumisection on."""
    maps, rng = run.maps, np.random.default_rng(5)
    p = probability(response * maps.pileup[since:, None] * (_rates(0) * factor)[failing])
    depth, row, column = np.nonzero(he_depth1_mask()[None])
    where = (slice(since, None), depth[failing], row[failing], column[failing])
    maps.counts[where] = rng.binomial(maps.n_events[since:].astype(int)[:, None], p)


def test_a_channel_that_is_dead_in_the_run_that_improves_a_quadratic_keeps_its_expectation() -> None:
    level, falling = (run_of(path, 0, run, RESPONSES[1]) for run, path in enumerate(("level", "fall")))
    falling.maps.counts[:, *np.argwhere(he_depth1_mask()[None])[400]] = 0
    for run in (level, falling):
        run.maps.counts[:] *= np.float32(7.5)
    first = Reference.fit(level.part(Part.TRAIN))
    second = first.updated_by(falling.part(Part.TRAIN))
    np.testing.assert_allclose(second.typical.counts, first.typical.counts, rtol=5e-3)
    again = run_of("fall", 0, 7, RESPONSES[1]).maps.counts * np.float32(7.5)
    assert (second.residuals(again)[:, 400] ** 2).mean() < 2.0


def test_slopes_of_scaled_counts_come_from_the_next_run() -> None:
    level, falling = (run_of(path, 0, run, RESPONSES[1]) for run, path in enumerate(("level", "fall")))
    for run in (level, falling):
        run.maps.counts[:] *= np.float32(7.5)
    first = Reference.fit(level.part(Part.TRAIN))
    assert first.kind == Quadratic.kind
    again = run_of("fall", 0, 7, RESPONSES[1]).maps.take(np.arange(300))  # the range of the train part
    counts = again.counts * np.float32(7.5)
    assert np.median((first.residuals(counts) ** 2).mean(axis=0)) < 1.5, "without a slope, the errors are larger"
    second = first.updated_by(falling.part(Part.TRAIN))
    assert np.median((second.residuals(counts) ** 2).mean(axis=0)) == pytest.approx(1.0, abs=0.3)
    np.testing.assert_allclose(second.typical.counts, first.typical.counts, rtol=5e-3)


def test_gains_measured_before_an_update_of_the_reference_mean_the_same_counts_after_it() -> None:
    level, ramp = run_of("level", 2, 1, RESPONSES[1], drift=0.03), run_of("ramp", 2, 2, RESPONSES[1])
    third = run_of("level", 2, 3, RESPONSES[1], drift=0.03)
    strategy, faults_of = Statistical(Geometry(1), 0, 400_000), []
    for number, run in enumerate((level, third)):
        strategy.learn(number, run, reader([]))
    before, old = strategy.gains.copy(), strategy.reference
    faults = FaultScore(old)
    for run in (level, third):
        faults.learn(run.part(Part.TRAIN))
    faults_of.append(faults.gain.copy())
    strategy.learn(2, ramp, reader([]))
    factor = old.gain_factor(strategy.reference)
    assert strategy.reference is not old and factor.std() > 0
    np.testing.assert_allclose(strategy.gains[:2], before * factor, rtol=1e-4, atol=1e-6)
    faults.set_reference(strategy.reference)
    np.testing.assert_allclose(faults.gain, faults_of[0] * factor)


@pytest.mark.parametrize("name", ["statistical", GainMap.name])
def test_a_stream_whose_second_run_improves_the_reference_resumes_to_the_same_bits(name: str) -> None:
    runs = [run_of(path, 0, run, n=200, drift=0.02) for run, path in enumerate(("level", "fall", "level"))]
    unbroken = make_strategy(name, geometry=Geometry(1), seed=0, memory_bytes=400_000)
    for number, run in enumerate(runs):
        resumed = make_strategy(name, geometry=Geometry(1), seed=0, memory_bytes=400_000)
        resumed.restore(unbroken.state())
        for one in (unbroken, resumed):
            one.learn(number, run, reader(runs))
        for key, array in unbroken.state().items():
            np.testing.assert_array_equal(resumed.state()[key], array, err_msg=key)
    assert (unbroken.scores(runs[2].part(Part.TEST)).argmax(axis=1) == 2).mean() > 0.8


def test_a_state_of_an_older_version_is_restored_without_larger_errors() -> None:
    reference = fitted("level", 0)
    added = {"response.error", "response.span", "response.first_span"}
    kept = {name: array for name, array in reference.state().items() if name not in added}
    old = Reference.from_state(kept)
    assert old.state().keys() == kept.keys()
    counts = run_of("fall", 0, 2).maps.counts
    assert not old.beyond(counts).any()
    np.testing.assert_array_equal(old.expected(counts), reference.expected(counts))


def _rates(seed: int) -> np.ndarray:
    return rate_per_pileup(seed)[LIVE]
