"""Intervals of an AUC and an accuracy have their nominal coverage, also if several rows belong to one observation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from dqmstream.experiments.studies.intervals import accuracy_interval, auc_interval

TRUE_AUC = float(norm.cdf(1.0 / np.sqrt(2)))


@pytest.mark.parametrize(("observations", "alike"), [(60, 1), (12, 5)])
def test_the_interval_of_an_auc_covers_95_of_100(observations: int, alike: int) -> None:
    """Scores N(1, 1) against N(0, 1), each drawn once and seen `alike` times."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        positive, negative = (np.repeat(rng.normal(mean, 1.0, observations), alike) for mean in (1.0, 0.0))
        unit = np.repeat(np.arange(observations), alike)
        found = auc_interval(positive, negative, (unit, unit))
        held += found.low <= TRUE_AUC <= found.high
    assert 0.92 <= held / 400 <= 0.995


@pytest.mark.parametrize("alike", [1, 5])
def test_the_interval_of_an_accuracy_covers_95_of_100(alike: int) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        right = np.repeat(rng.random(40) < 0.8, alike)
        found = accuracy_interval(right, np.repeat(np.arange(40), alike))
        held += found.low <= 0.8 <= found.high
    assert 0.92 <= held / 400 <= 0.995


def test_with_all_pairs_in_order_the_interval_follows_from_the_number_of_observations() -> None:
    scores, units = (np.arange(10) + 100.0, np.arange(10.0)), (np.arange(10), np.arange(10))
    assert auc_interval(*scores, units).low == pytest.approx(0.025 ** (1 / 10))
    two = (np.repeat([0, 1], 5), np.repeat([0, 1], 5))
    assert auc_interval(*scores, two).low == pytest.approx(0.025**0.5)
    assert auc_interval(*scores[::-1], units).high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert accuracy_interval(np.ones(50, dtype=bool), np.repeat(np.arange(5), 10)).low < 0.6
