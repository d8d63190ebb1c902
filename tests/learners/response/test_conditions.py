"""Observations under other gains and conditions follow the law, and conditions are fitted to all channels."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.law import probability, silence
from dqmstream.learners.response.observation import ConditionFactors, Observation, observe
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from tests.learners.streams import FIRST_RUN, draw_run


def drawn(gain: np.ndarray, seed: int = 1) -> np.ndarray:
    return draw_run(gain, np.random.default_rng(seed), 200, FIRST_RUN).part(Part.TRAIN).counts


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.fit(draw_run(np.ones(932), np.random.default_rng(0), 400, FIRST_RUN).part(Part.TRAIN))


def observed(reference: Reference, counts: np.ndarray) -> Observation:
    return observe(reference, counts[:, reference.live].astype(np.float64))


def test_silence_is_one_minus_the_probability_to_fire() -> None:
    rate = np.geomspace(1e-4, 1e3, 200)
    np.testing.assert_allclose(1 - silence(rate), probability(rate), rtol=1e-11)


def test_expected_counts_under_gains_follow_the_law(reference: Reference) -> None:
    seen = observed(reference, drawn(np.ones(932)))
    gain = np.random.default_rng(3).uniform(-0.5, 1.0, 932)
    under = seen.under(gain / 1.2 - 1 / 6, ConditionFactors(np.full((1, 1), 0.9), np.full((1, 1), 1.2)))
    counts = seen.deviation * (seen.residual + seen.leverage)
    events = seen.deviation * seen.full
    p = probability(seen.rate * (1 + gain))
    np.testing.assert_allclose(1 - under.quiet, p, rtol=1e-6)
    np.testing.assert_allclose(under.deviation * (under.residual + under.leverage), counts, rtol=1e-6)
    np.testing.assert_allclose(under.deviation * under.leverage, 0.9 * events * p, rtol=1e-6)
    wider = 0.9 * p * (1 - p) / (seen.quiet * (1 - seen.quiet))
    np.testing.assert_allclose((under.deviation / seen.deviation) ** 2, wider, rtol=1e-4)


def test_derivatives_are_those_of_a_small_change(reference: Reference) -> None:
    seen = observed(reference, drawn(np.ones(932)))
    more = seen.under(1e-5)
    # Counts themselves do not move: more is expected of them, in deviations that change too.
    moved = (more.leverage * more.deviation - seen.leverage * seen.deviation) / seen.deviation
    np.testing.assert_allclose(moved / 1e-5, seen.rate_leverage, rtol=1e-3, atol=1e-6)


def test_conditions_are_right_where_gains_look_like_pileup(reference: Reference) -> None:
    """A run in which all channels of the rings of a gained 10 % looks like one of higher pileup."""
    ieta = np.abs(np.nonzero(reference.live)[1] - 31.5)
    gain = np.where(ieta < 23, 0.1, 0.0) + 0.02 * np.random.default_rng(4).standard_normal(932)
    gain[[3, 400]] = -1.0, 2.0
    counts = drawn(1 + gain)
    counts[7, 0, :, 10:20] = 0.0  # a part of the detector that is off for once
    seen = observed(reference, counts)
    misled = np.median(np.abs(seen.under(gain).residual))
    for thinned in (1, 8):
        left = seen.under(gain, fit_conditions(seen.of(slice(None, None, thinned)), gain[::thinned])).residual
        assert np.median(np.abs(left)) < 0.75 < 0.85 < misled
        assert np.median(np.abs(left[7])) < 1.0


def test_conditions_of_empty_lumisections_stay_as_they_are(reference: Reference) -> None:
    seen = observed(reference, np.zeros((2, 1, 64, 72), dtype=np.float32))
    np.testing.assert_array_equal(fit_conditions(seen, np.zeros(932)), np.ones((2, 2, 1)))
