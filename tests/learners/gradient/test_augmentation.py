"""Redrawn lumisections are those of the same run under fewer events or by other chance; what moves channels is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.checks import check_learns_and_scores, check_resumes_to_the_same_bits
from dqmstream.learners.gradient.augmentation import LEAST_PART, resample, thin, with_copies
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from tests.learners.streams import make_stream
from tests.learners.test_strategies import BRIEF, BUDGET, make


def _reference() -> tuple[Reference, np.ndarray, np.ndarray]:
    """Of a run of 800 lumisections: reference, whole counts of its train part, and their true number of events."""
    train = make_stream(1, drift=0.0, n=800)[0].part(Part.TRAIN)
    reference = Reference.fit(train)
    return reference, train.counts[:, reference.live].astype(np.int64), train.n_events


def test_the_reference_knows_how_many_events_a_count_is_of() -> None:
    reference, counts, events = _reference()
    assert reference.kind == "saturating"
    np.testing.assert_allclose(np.median(reference.response(counts).events / events[:, None], axis=0), 1, atol=0.02)


def test_a_thinned_lumisection_is_one_of_fewer_events_and_not_a_noisier_one() -> None:
    """Channels that are nearly full stay so: had each channel lost events of its own, the variance would be far above 1."""
    reference, counts, _ = _reference()
    events = np.maximum(np.rint(reference.response(counts).events).astype(np.int64), counts)
    thinned, kept = thin((counts, events), np.random.default_rng(0))
    part = (kept / events).mean(axis=1)
    assert part.min() > LEAST_PART - 0.01 and part.max() < 1.0 and part.std() > 0.15
    assert (thinned <= kept).all()
    np.testing.assert_allclose((thinned / counts).mean(axis=1), part, atol=0.01)
    residuals = reference.residuals_of_live(thinned)
    assert np.median(residuals.var(axis=0)) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(residuals.mean(axis=0), reference.residuals_of_live(counts).mean(axis=0), atol=0.25)


def test_a_resampled_lumisection_has_its_own_chance_upon_that_of_the_first() -> None:
    reference, counts, _ = _reference()
    events = np.maximum(np.rint(reference.response(counts).events).astype(np.int64), counts)
    drawn, same = resample((counts, events), np.random.default_rng(0))
    assert same is events
    before, after = reference.residuals_of_live(counts), reference.residuals_of_live(drawn)
    assert np.median((after - before).var(axis=0)) == pytest.approx(1.0, abs=0.1)
    assert np.median(after.var(axis=0)) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("names", [("thin",), ("resample",), ("thin", "resample")])
def test_copies_lie_below_the_counts_and_a_broken_channel_stays_broken(names: tuple[str, ...]) -> None:
    counts = np.tile(np.array([0.0, 700.0, 650.5, 1000.0]), (5, 1))
    events = np.tile(np.array([1000.0, 1000.0, 0.0, 900.0]), (5, 1))
    events[4] = counts[4] = 0.0
    found = with_copies(counts, events, names, 2, np.random.default_rng(0))
    assert found.shape == (15, 4) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:5], counts.astype(np.float32))
    copies = found[5:].reshape(2, 5, 4)
    assert not copies[:, :, 0].any(), "a dead channel counts nothing under any events"
    assert not copies[:, 4].any(), "nor does a dark lumisection"
    assert (copies[:, :4, 1] > 0).all() and len(np.unique(copies[:, :4, 1])) > 6
    assert (copies[:, :4, 3] <= 1000).all()


def test_a_strategy_that_augments_keeps_the_contract_and_looks_at_more() -> None:
    recipe = replace(BRIEF, augment=("thin", "resample"), augment_copies=2, steps=2)
    stream = make_stream(3, drift=0.03, seed=1)
    check_learns_and_scores(make("replay", recipe=recipe), stream, BUDGET)
    check_resumes_to_the_same_bits(lambda seed: make("replay", seed, recipe), stream)


@pytest.mark.parametrize(("name", "why"), [("roll", "which channels"), ("flip", "mirror"), ("cutout", "thin, resample")])
def test_what_destroys_a_run_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Recipe(augment=("thin", name))
