"""Logistic regression agrees with scikit-learn, weights classes equally, and copes with a memory that loses runs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dqmstream.errors import InputError, StateError
from dqmstream.learners.closed_form.logistic import STRENGTH, TOLERANCE, Logistic, with_one
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

LUMISECTION_BYTES = 2 * 932


def _learnt(stream: list[RunData], memory_bytes: int) -> Logistic:
    strategy = Logistic(Geometry(1), 0, memory_bytes)
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    return strategy


def test_weights_are_those_of_scikit_learn_with_classes_weighted_equally() -> None:
    stream = make_stream(3, drift=0.02, seed=1, n=100)
    known = _learnt(stream[:2], 30 * LUMISECTION_BYTES)
    state = known.state()
    sizes = state["memory.sizes"]
    kept = np.split(state["memory.counts"].astype(np.float32), np.cumsum(sizes)[:-1])
    assert list(sizes) == [15, 15]
    by_class = [*kept, stream[2].part(Part.TRAIN).counts[:, known.reference.live]]
    log = known.learn(2, stream[2], reader(stream))

    features = with_one(np.concatenate([known.reference.residuals_of_live(counts) for counts in by_class]))
    label = np.repeat(np.arange(3), [len(counts) for counts in by_class])
    weight = np.concatenate([np.full(len(counts), 1 / (3 * len(counts))) for counts in by_class])
    library = LogisticRegression(C=1 / STRENGTH, fit_intercept=False, tol=1e-8, max_iter=5000)
    library.fit(features, label, sample_weight=weight)
    np.testing.assert_allclose(known.state()["weights"], library.coef_, atol=1e-3 * np.abs(library.coef_).max())
    assert log.notes["largest_derivative"] <= TOLERANCE
    assert log.flops == 4 * log.samples * 933 * 3 + known.reference.response_flops(len(label))


def test_a_run_without_exemplars_does_no_harm() -> None:
    stream = make_stream(4, drift=0.03, seed=3, n=100)
    strategy = _learnt(stream, 2 * LUMISECTION_BYTES)
    assert strategy.memory_bytes() == 2 * LUMISECTION_BYTES
    scores = strategy.scores(stream[3].maps)
    assert np.isfinite(scores).all()
    assert np.mean(scores.argmax(axis=1) == 3) > 0.9
    with pytest.raises(InputError, match="cannot hold one lumisection"):
        _learnt(stream, LUMISECTION_BYTES - 1)


def test_weights_of_another_detector_are_refused() -> None:
    stream = make_stream(2, drift=0.03, n=100)
    state = _learnt(stream, 100_000).state()
    with pytest.raises(StateError, match="not of 932 channels"):
        Logistic(Geometry(1), 0, 100_000).restore(state | {"weights": state["weights"][:, 1:]})
