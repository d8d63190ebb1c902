"""Calibration by hand, on classifiers that are calibrated by construction, and on overconfident ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from dqmstream.learners.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    at_temperature,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)


def draw(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of 4 classes and labels drawn from them; then made sharper, (n, 4) and (n,)."""
    rng = np.random.default_rng(seed)
    truth = log_softmax(1.5 * rng.standard_normal((n, 4)), axis=1)
    labels = np.array([rng.choice(4, p=p) for p in np.exp(truth)])
    return np.asarray(log_softmax(sharpness * truth, axis=1)), labels


def test_the_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    # Bins of 1/15: .9 and .9 in one (one of two right), .7 in another (right), .55 in a third (wrong).
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.7) + abs(0 - 0.55)) / 4
    assert expected_calibration_error(np.log(p), np.array([0, 1, 1, 0])) == pytest.approx(expected)


def test_neighbours_in_a_bin_may_make_up_for_each_other_and_others_may_not() -> None:
    within = np.log([[0.61, 0.39], [0.65, 0.35]])
    assert expected_calibration_error(within, np.array([0, 1])) == pytest.approx(abs(0.5 - 0.63))
    apart = np.log([[0.55, 0.45], [0.95, 0.05]])
    assert expected_calibration_error(apart, np.array([0, 1])) == pytest.approx((0.45 + 0.95) / 2)
    with np.errstate(divide="ignore"):
        assert expected_calibration_error(np.log([[1.0, 0.0]]), np.array([0])) == 0.0


def test_the_likelihood_of_guessing_is_the_logarithm_of_the_number_of_runs() -> None:
    assert negative_log_likelihood(np.full((5, 8), -np.log(8)), np.arange(5)) == pytest.approx(np.log(8))


def test_a_calibrated_classifier_has_no_error_to_speak_of_and_keeps_its_temperature() -> None:
    log_probability, labels = draw(4000, 0)
    assert expected_calibration_error(log_probability, labels) < 0.03
    assert fit_temperature(log_probability, labels) == pytest.approx(1.0, abs=0.07)


def test_the_temperature_is_found_on_validation_and_mends_the_test() -> None:
    test, labels = draw(4000, 1, sharpness=5.0)
    found = calibrate(test, labels, *draw(2000, 2, sharpness=5.0))
    assert found.temperature == pytest.approx(5.0, rel=0.08)
    assert found.ece_calibrated is not None and found.nll_calibrated is not None
    assert found.ece > 0.2 > 0.04 > found.ece_calibrated
    assert found.nll > found.nll_calibrated
    np.testing.assert_array_equal(at_temperature(test, 5.0).argmax(axis=1), test.argmax(axis=1))


def test_the_temperature_never_sees_the_test_labels() -> None:
    test, labels = draw(200, 3, sharpness=3.0)
    validation = draw(200, 4, sharpness=3.0)
    found, other = calibrate(test, labels, *validation), calibrate(test, (labels + 1) % 4, *validation)
    assert found.temperature == other.temperature
    assert found.nll != other.nll


def test_no_validation_is_no_temperature_and_extremes_end_at_their_bounds() -> None:
    test, labels = draw(50, 5)
    found = calibrate(test, labels, test[:0], labels[:0])
    assert (found.temperature, found.nll_calibrated, found.ece_calibrated) == (None, None, None)
    sure = np.log(np.array([[0.6, 0.4], [0.4, 0.6]]))
    assert fit_temperature(sure, np.array([0, 1])) == pytest.approx(COLDEST, rel=0.2)
    assert fit_temperature(sure, np.array([1, 0])) == pytest.approx(HOTTEST, rel=0.2)
