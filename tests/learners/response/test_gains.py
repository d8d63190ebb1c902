"""Fitted gains are the true changes of rates; over runs, noise is smoothed and changes are kept."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.gains import GAIN_PRIOR, MOST, fit_gains, smooth_gains
from dqmstream.learners.response.law import rate_of
from dqmstream.learners.response.observation import Observation, observe
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from tests.learners.streams import FIRST_RUN, draw_run

RING = np.repeat([0, 1], 100)


def test_gains_do_not_depend_on_the_starting_values() -> None:
    rng = np.random.default_rng(0)
    reference = Reference.fit(draw_run(np.ones(932), rng, 400, FIRST_RUN).part(Part.TRAIN))
    gain = 0.03 * rng.standard_normal(932)
    gain[::20] = np.resize([-1.0, -0.8, -0.5, 0.4, 1.0, 3.0], len(gain[::20]))
    counts = draw_run(1 + gain, rng, 400, FIRST_RUN + 1).part(Part.TRAIN).counts[:, reference.live].astype(np.float64)
    seen = observe(reference, counts)
    seen = seen.under(0.0, fit_conditions(seen, gain))
    starts = (np.zeros(932), gain, np.where(gain < 0, MOST, -1.0), rng.permutation(gain))
    found = [fit_gains(seen, first) for first in starts]
    found_gain, error = found[0]
    for other, other_error in found[1:]:
        assert np.mean(np.abs(other - found_gain) < 0.1 * error) > 0.995
        np.testing.assert_allclose(other_error, error, rtol=0.1)
    pull = (found_gain - gain) / np.hypot(error, error)
    # For a nearly full channel, the prior pulls a very large gain back.
    telling = error < 0.05
    assert telling.mean() > 0.5
    assert abs(np.median(pull[telling])) < 0.25
    assert 0.8 < np.median(np.abs(pull[telling])) / 0.6745 < 1.25
    np.testing.assert_allclose(found_gain[gain == -1], -1, atol=1e-5)
    assert (error <= GAIN_PRIOR).all()


def test_a_channel_that_counts_more_than_the_events_keeps_a_plausible_gain() -> None:
    """As at ten times the pileup of the reference, where the probability to fire is known to 1 %."""
    rng = np.random.default_rng(0)
    fired, full = 0.995, np.full((200, 50), 400.0)  # 796 events
    quiet, rate = np.full_like(full, 1 - fired), np.full_like(full, rate_of(np.array(fired)))
    residual = 3 + rng.standard_normal(full.shape)
    assert residual.mean() > (full * quiet).max()
    seen = Observation(residual, full, rate, quiet, full * fired * quiet)
    gain, _ = fit_gains(seen, np.zeros(50))
    assert rms(seen.under(gain).residual) < 1.02 * rms(residual)


def walks(runs: int, step: float, error: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True gains of 200 channels, random walks over the runs, and their measurements."""
    rng = np.random.default_rng(seed)
    true = np.expm1(np.cumsum(step * rng.standard_normal((runs, 200)), axis=0))
    return true, true + error * rng.standard_normal(true.shape)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_without_drift_runs_are_averaged() -> None:
    true, measured = walks(40, step=0.0, error=0.02)
    found = smooth_gains(measured, np.full_like(measured, 0.02), RING)
    assert rms(found - true) < 1.3 * 0.02 / np.sqrt(40)


def test_a_walk_is_followed_as_well_as_the_best_smoother_does() -> None:
    for step in (0.002, 0.01):
        true, measured = walks(200, step, error=0.02)
        found = smooth_gains(measured, np.full_like(measured, 0.02), RING)
        # Variance p of the stationary smoother, from the step q and the error r, in units of r.
        ratio = (step / 0.02) ** 2
        best = 0.02 * np.sqrt(ratio / np.sqrt(ratio**2 + 4 * ratio))
        assert rms((found - true)[20:-20]) < 1.1 * best


def test_the_step_is_estimated_for_each_ring() -> None:
    steady, quick = walks(50, 0.0, 0.02, seed=1), walks(50, 0.05, 0.02, seed=2)
    true, measured = (np.where(RING == 0, one, other) for one, other in zip(steady, quick, strict=True))
    off = smooth_gains(measured, np.full_like(measured, 0.02), RING) - true
    assert rms(off[:, RING == 0]) < 0.005
    assert 0.01 < rms(off[:, RING == 1]) < 0.02


def test_a_channel_that_jumps_starts_anew_and_a_dead_one_stays_as_measured() -> None:
    _, measured = walks(30, step=0.0, error=0.01, seed=3)
    measured[10:, 0] -= 0.3
    measured[10:20, 1] = -1.0
    measured[15, 2] += 1.0
    found = smooth_gains(measured, np.full_like(measured, 0.01), RING)
    np.testing.assert_allclose(found[:10, 0], 0.0, atol=0.012)
    np.testing.assert_allclose(found[10:, 0], -0.3, atol=0.012)
    np.testing.assert_array_equal(found[10:20, 1], -1.0)
    np.testing.assert_allclose(found[[5, 9, 20, 25], 1], 0.0, atol=0.012)
    np.testing.assert_allclose(found[15, 2], measured[15, 2], atol=1e-9)
    np.testing.assert_allclose(found[[14, 16], 2], 0.0, atol=0.012)


def test_a_single_run_stays_as_measured() -> None:
    _, measured = walks(1, step=0.1, error=0.01)
    np.testing.assert_array_equal(smooth_gains(measured, np.full_like(measured, 0.01), RING), measured)
