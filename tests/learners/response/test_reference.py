"""The reference removes luminosity from maps, under all conditions and with broken channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.quadratic import Quadratic
from dqmstream.learners.response.reference import CLIP, Reference
from dqmstream.learners.splits import Part, Split
from dqmstream.lumisection import IETA, he_depth1_mask, ieta_row
from tests.learners.streams import draw_run, make_stream


def _gain(seed: int = 0) -> np.ndarray:
    return np.exp(0.08 * np.random.default_rng(seed).standard_normal(932))


def _fitted(seed: int = 0) -> tuple[Reference, np.ndarray]:
    gain = _gain(seed)
    run = draw_run(gain, np.random.default_rng([seed, 1]), 400, 1)
    return Reference.fit(run.part(Part.TRAIN)), gain


@pytest.mark.parametrize("events", [1.0, 0.5, 0.1])
def test_residuals_of_the_same_detector_are_standard_normal_under_other_conditions(events: float) -> None:
    reference, gain = _fitted()
    run = draw_run(gain, np.random.default_rng(2), 400, 2, scale=events)
    residuals = reference.residuals(run.maps.counts)
    assert residuals.shape == (400, 932)
    assert residuals.dtype == np.float32
    assert abs(residuals.mean()) < 0.05
    assert np.median(residuals.std(axis=1)) == pytest.approx(1.0, abs=0.1)
    assert np.abs(residuals.mean(axis=0)).mean() < 0.25


def test_channels_that_counted_are_live_and_have_the_right_mean_expectation() -> None:
    reference, gain = _fitted()
    run = draw_run(gain, np.random.default_rng(2), 100, 2)
    np.testing.assert_array_equal(reference.live[0], he_depth1_mask())
    expected = reference.expected(run.maps.counts)
    assert expected.mean() == pytest.approx(run.maps.counts[:, reference.live].mean(), rel=0.01)
    back = reference.to_map(expected)
    assert back.shape == run.maps.counts.shape
    np.testing.assert_array_equal(back[:, reference.live], expected)
    assert not back[:, ~reference.live].any()


def test_a_dead_readout_box_does_not_affect_other_channels() -> None:
    reference, gain = _fitted()
    counts = draw_run(gain, np.random.default_rng(2), 200, 2).maps.counts
    broken = counts.copy()
    broken[:, :, :32, 10:14] = 0
    elsewhere = (broken == counts).all(axis=0)[reference.live]
    moved = reference.residuals(broken) - reference.residuals(counts)
    assert np.abs(moved[:, elsewhere]).mean() < 0.1
    assert (reference.residuals(broken)[:, ~elsewhere] < -4).mean() > 0.9


def test_hot_and_dead_readout_boxes_together_do_not_affect_other_channels() -> None:
    """Six of 36 boxes, most of them too high: conditions are medians over boxes."""
    reference, gain = _fitted()
    counts = draw_run(gain, np.random.default_rng(2), 200, 2).maps.counts
    broken = counts.copy()
    for side, columns, factor in ((0, 2, 2.0), (0, 26, 2.0), (1, 14, 2.0), (1, 34, 1.5), (1, 58, 0.0), (0, 50, 0.0)):
        broken[:, :, 32 * side : 32 * (side + 1), columns : columns + 4] *= factor
    untouched = (broken == counts).all(axis=0)[reference.live]
    assert 0.7 < untouched.mean() < 0.9
    moved = np.abs(reference.residuals(broken) - reference.residuals(counts))
    assert moved[:, untouched].mean() < 0.1
    assert (moved[:, ~untouched] > 4).mean() > 0.7


def test_channels_dead_in_the_reference_are_left_out() -> None:
    run = make_stream(1, drift=0.0)[0]
    run.maps.counts[:, 0, ieta_row(25), 0] = 0
    reference = Reference.fit(run.part(Part.TRAIN))
    assert reference.live.sum() == 931
    assert reference.residuals(run.maps.counts).shape == (200, 931)


def test_constant_conditions_fit_no_slope() -> None:
    counts = np.zeros((50, 1, 64, 72), dtype=np.float32)
    counts[:, 0, he_depth1_mask()] = 700
    reference = Reference.fit(Maps(counts, np.full(50, np.nan), np.full(50, np.nan), np.arange(50)))
    np.testing.assert_allclose(reference.residuals(counts), 0, atol=1e-6)
    np.testing.assert_allclose(reference.expected(counts * 3), 2100)
    later = make_stream(1, drift=0.0)[0].maps.counts
    assert np.isfinite(reference.residuals(later)).all()
    assert np.abs(reference.residuals(later)).max() <= CLIP


@pytest.mark.parametrize("n", [1, 2])
def test_a_reference_of_one_or_two_lumisections_is_finite(n: int) -> None:
    stream = make_stream(2, drift=0.0)
    reference = Reference.fit(stream[0].maps.take(np.arange(n)))
    assert np.isfinite(reference.residuals(stream[1].maps.counts)).all()


def test_in_other_parts_of_the_detector_a_and_b_are_the_dim_and_the_bright_half() -> None:
    run = make_stream(1, drift=0.0, n=400)[0]
    counts = np.zeros_like(run.maps.counts)
    counts[:, 0, 24:40] = np.concatenate([run.maps.counts[:, 0, 3:11], run.maps.counts[:, 0, 53:61]], axis=1)
    maps = Maps(counts, run.maps.n_events, run.maps.pileup, run.maps.lumisection)
    reference = Reference.fit(maps)
    assert np.abs(np.where(reference.live.any(axis=2)[0])[0] - 31.5).max() < 8
    assert np.median(reference.residuals(counts).std(axis=1)) == pytest.approx(1.0, abs=0.15)


def test_a_dark_reference_is_refused() -> None:
    dark = np.zeros((10, 1, 64, 72), dtype=np.float32)
    for counts in (dark, dark[:0]):
        nothing = np.full(len(counts), np.nan)
        with pytest.raises(InputError, match="no counts"):
            Reference.fit(Maps(counts, nothing, nothing, np.arange(len(counts))))


def test_residuals_of_an_empty_lumisection_are_zero() -> None:
    reference, _ = _fitted()
    assert not reference.residuals(np.zeros((2, 1, 64, 72), dtype=np.float32)).any()


def test_state_gives_the_same_bits_back() -> None:
    reference, gain = _fitted()
    counts = draw_run(gain, np.random.default_rng(2), 50, 2).maps.counts
    again = Reference.from_state(reference.state())
    np.testing.assert_array_equal(again.residuals(counts), reference.residuals(counts))
    for lost in reference.state():
        with pytest.raises(StateError, match="lacks some of its arrays"):
            Reference.from_state({name: array for name, array in reference.state().items() if name != lost})


def test_outside_the_pileup_of_the_reference_run_residuals_stay_standard_normal() -> None:
    runs = [as_run_data(run, Split()) for run in stream("null", seed=0, runs=4, lumisections=400)]
    reference = Reference.fit(runs[0].part(Part.TRAIN))
    assert reference.kind == "saturating"
    ratios = np.divide(*reference.conditions(runs[0].part(Part.TRAIN).counts).T)
    later = [run.part(Part.TEST).counts for run in runs]
    beyond = np.concatenate([counts[np.divide(*reference.conditions(counts).T) < ratios.min()] for counts in later])
    assert len(beyond) > 80
    residuals = reference.residuals(beyond)
    assert np.median((residuals**2).mean(axis=0)) == pytest.approx(1.0, abs=0.1)
    assert residuals.mean(axis=0).std() < 0.25
    quadratic = _quadratic(runs[0])
    assert np.median((quadratic.residuals(beyond) ** 2).mean(axis=0)) > 1.3  # with its larger errors there
    assert quadratic.beyond(beyond).mean() > 0.2


def _quadratic(run: RunData) -> Reference:
    """The same with a quadratic response."""
    fitted = Reference.fit(run.part(Part.TRAIN))
    counts = run.part(Part.TRAIN).counts[:, fitted.live].astype(np.float64)
    conditions = fitted.conditions(run.part(Part.TRAIN).counts)
    profile = counts.mean(axis=0)
    return Reference(fitted.live, profile, Quadratic.fit(counts, conditions, profile, fitted.ring)[0])


@pytest.mark.parametrize("scale", [0.1, 7.5])
def test_scaled_counts_are_fitted_although_they_do_not_scatter_as_events(scale: float) -> None:
    stream = make_stream(2, drift=0.0, n=400)
    first, second = (replace(run.part(Part.TRAIN), counts=run.part(Part.TRAIN).counts * np.float32(scale)) for run in stream)
    residuals = Reference.fit(first).residuals(second.counts)
    assert np.median((residuals**2).mean(axis=0)) == pytest.approx(1.0, abs=0.15)


def test_counts_that_do_not_follow_the_law_have_a_quadratic_response() -> None:
    run = make_stream(1, drift=0.0, n=400)[0].part(Part.TRAIN)
    ratio = np.divide(*Reference.fit(run).conditions(run.counts).T)
    bent = run.counts * ratio[:, None, None, None] ** -3
    one_ring, every_other = (np.abs(IETA) == 25)[:, None], (IETA % 2 == 1)[:, None]
    for bends, kind in ((one_ring, "saturating"), (every_other, "quadratic")):
        assert Reference.fit(replace(run, counts=np.rint(np.where(bends, bent, run.counts)))).kind == kind
