"""Whether a probability means what it says: calibration error and likelihood, before and after a temperature.

The temperature is fitted on validation lumisections alone, so that what it does to the test lumisections is a measurement.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dqmstream.learners.evaluation.history_line import Calibration

BINS = 15
"""Bins of equal width in (0, 1], as Guo et al. have them."""

COLDEST, HOTTEST = 1e-2, 1e4
"""Temperatures between which the fit looks. A fit at the coldest means that validation was named without an error and shows no
limit to how sure one may be; at the hottest, that the scores say nothing of the run."""


def calibrate(
    log_probability: np.ndarray, labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray
) -> Calibration:
    """Judge test log-probabilities (n, T) with classes (n,), with a temperature from validation ones (m, T) and (m,)."""
    before = negative_log_likelihood(log_probability, labels), expected_calibration_error(log_probability, labels)
    if len(validation_labels) == 0:
        return Calibration(*before, None, None, None)
    temperature = fit_temperature(validation, validation_labels)
    cooled = at_temperature(log_probability, temperature)
    after = negative_log_likelihood(cooled, labels), expected_calibration_error(cooled, labels)
    return Calibration(*before, temperature, *after)


def expected_calibration_error(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """sum over bins of |B| / n |accuracy(B) - confidence(B)| (Guo et al., ICML 2017, eq. 3; 15 bins of equal width).

    The confidence of a lumisection is its largest probability; a bin holds ((m-1)/15, m/15]. Every lumisection counts alike.
    Of a perfectly calibrated classifier it is above zero all the same, by the scatter within bins, about
    sqrt(bins / n) in size: with few lumisections it says little.
    """
    confidence = np.exp(log_probability.max(axis=1))
    right = log_probability.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    excess = np.bincount(place, weights=right - confidence, minlength=BINS)
    return float(np.abs(excess).sum() / len(labels))


def negative_log_likelihood(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the right run, in nats; guessing gives log T (Guo et al., ICML 2017, eq. 5, over n)."""
    return float(-log_probability[np.arange(len(labels)), labels].mean())


def at_temperature(log_probability: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax(z / temperature): which run is named stays, how sure one is changes (Guo et al., ICML 2017, eq. 9)."""
    return np.asarray(log_softmax(log_probability / temperature, axis=1))


def fit_temperature(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the smallest negative log-likelihood (Guo et al., ICML 2017, section 4.2).

    The likelihood is convex in 1 / temperature, so it has one minimum in its logarithm too.
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(at_temperature(log_probability, np.exp(log_temperature)), labels)

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))
