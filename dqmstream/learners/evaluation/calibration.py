"""Calibration: whether the probabilities that a strategy gives agree with how often it is right.

Calibration error and likelihood are measured on test lumisections, before and after a temperature that is fitted on validation
lumisections only.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dqmstream.learners.evaluation.history_line import Calibration

BINS = 15
"""Bins of equal width in (0, 1], as in Guo et al."""

COLDEST, HOTTEST = 1e-2, 1e4
"""Range of the fit. A fit at the coldest means that no validation lumisection was given to a wrong run, so that nothing limits
the confidence; one at the hottest means that the scores carry no information about the run."""


def calibrate(
    log_probability: np.ndarray, labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray
) -> Calibration:
    """Calibration on test log-probabilities (n, T), labels (n,); the temperature is fitted on validation (m, T), (m,)."""
    before = negative_log_likelihood(log_probability, labels), expected_calibration_error(log_probability, labels)
    if len(validation_labels) == 0:
        return Calibration(*before, None, None, None)
    temperature = fit_temperature(validation, validation_labels)
    cooled = at_temperature(log_probability, temperature)
    after = negative_log_likelihood(cooled, labels), expected_calibration_error(cooled, labels)
    return Calibration(*before, temperature, *after)


def expected_calibration_error(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """sum over bins of |B| / n |accuracy(B) - confidence(B)| (Guo et al., ICML 2017, eq. 3; 15 bins of equal width).

    The confidence of a lumisection is its largest probability; bin m is ((m-1)/15, m/15]. The scatter within bins makes it
    larger than zero even for a perfectly calibrated classifier, by about sqrt(bins / n): with few lumisections it says little.
    """
    confidence = np.exp(log_probability.max(axis=1))
    right = log_probability.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    excess = np.bincount(place, weights=right - confidence, minlength=BINS)
    return float(np.abs(excess).sum() / len(labels))


def negative_log_likelihood(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the true run, in nats (Guo et al., ICML 2017, eq. 5, divided by n). Guessing gives log T."""
    return float(-log_probability[np.arange(len(labels)), labels].mean())


def at_temperature(log_probability: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax(z / temperature): changes the confidence, not the most probable run (Guo et al., ICML 2017, eq. 9)."""
    return np.asarray(log_softmax(log_probability / temperature, axis=1))


def fit_temperature(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the smallest negative log-likelihood (Guo et al., ICML 2017, section 4.2).

    The negative log-likelihood is convex in 1 / temperature, so its minimum is unique.
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(at_temperature(log_probability, np.exp(log_temperature)), labels)

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))
