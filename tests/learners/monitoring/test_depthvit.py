"""The detector by DepthViT: it finds what its training had not, and keeps the models that it says."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.monitoring.depthvit import DepthViTDetector, Training, scaled_by_quartiles
from dqmstream.lumisection import he_depth1_mask

BRIEF = Training(patch=(16, 12), layers=1, batch=16, first_epochs=10, epochs=1)


def maps(n: int, seed: int, depths: int = 2) -> np.ndarray:
    """Scaled counts of two depths under moving conditions, (n, 2 x 932)."""
    rng = np.random.default_rng(seed)
    rate = np.random.default_rng(0).uniform(0.3, 1.5, depths * 932)
    pileup = rng.uniform(0.5, 2.0, (n, 1))
    return rng.poisson(1000 * (1 - np.exp(-rate * pileup))).astype(np.float32)


def test_a_dead_channel_that_the_training_had_not_stands_out_in_its_place() -> None:
    detector = DepthViTDetector(np.repeat(he_depth1_mask()[None], 2, axis=0), BRIEF, seed=0)
    losses = detector.learn(scaled_by_quartiles(maps(200, 1)))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    good = maps(60, 2)
    dead = int(good.mean(axis=0).argmax())
    bad = good.copy()
    bad[:, dead] = 0.0
    scores = detector.scores(scaled_by_quartiles(bad))
    assert (scores.argmax(axis=1) == dead).mean() > 0.9
    assert np.median(scores.max(axis=1)) > 1.3 * np.quantile(detector.scores(scaled_by_quartiles(good)).max(axis=1), 0.99)


def test_models_are_the_newest_and_older_ones_at_growing_ages() -> None:
    detector = DepthViTDetector(he_depth1_mask()[None], Training(layers=1, first_epochs=1, epochs=1, models=3), seed=0)
    probe, after = scaled_by_quartiles(maps(4, 9, 1)), []
    for run in range(6):
        detector.learn(scaled_by_quartiles(maps(40, run, 1)))
        assert len(detector.models) == min(run + 1, 3)
        for learnt, model in zip(detector.learnt_after, detector.models[1:], strict=True):
            np.testing.assert_array_equal(detector.rebuilt(model, probe), after[learnt - 1], err_msg="an older model changed")
        after.append(detector.rebuilt(detector.models[0], probe))
    assert detector.learnt_after[0] == 1


def test_scaling_ignores_the_number_of_events_and_takes_a_blank_lumisection() -> None:
    counts = maps(5, 3)
    np.testing.assert_allclose(scaled_by_quartiles(2 * counts), scaled_by_quartiles(counts), rtol=1e-5, atol=1e-6)
    blank = scaled_by_quartiles(np.zeros((1, 932), dtype=np.float32))
    assert not blank.any()
    assert np.isfinite(scaled_by_quartiles(np.eye(1, 932, dtype=np.float32))).all()


def test_own_statistics_are_those_of_the_values_that_are_scored() -> None:
    """They forgive a shift that all lumisections of the run share, and with it a fault that lasts all of the run."""
    detector = DepthViTDetector(he_depth1_mask()[None], Training(layers=1, batch=16, first_epochs=4), seed=0)
    detector.learn(scaled_by_quartiles(maps(100, 1, 1)))
    shifted = maps(60, 2, 1)
    shifted[:, 100] *= 0.2
    values = scaled_by_quartiles(shifted)
    assert np.median(detector.scores(values)[:, 100]) > 2 * np.median(detector.scores(values, own_statistics=True)[:, 100])
