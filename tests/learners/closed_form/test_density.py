"""The density of a lumisection in a run is the normal density with the covariance matrix of the model."""

from __future__ import annotations

import numpy as np
import pytest

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.closed_form import density
from dqmstream.learners.closed_form.density import THINNED, KnownRuns, clipped, log_densities
from dqmstream.learners.response.boxes import ReadoutBoxes
from dqmstream.learners.response.conditions import fit_conditions
from dqmstream.learners.response.observation import ConditionFactors, Observation, observe
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part, Split

WIDE = 1.0
"""Variance of a free direction, a change by 100 %: large enough not to matter, since counts fix it to .1 %."""


@pytest.fixture(scope="module")
def observed() -> tuple[Observation, ReadoutBoxes]:
    """Lumisections of the second run of a stream, compared with the reference of its first."""
    runs = [as_run_data(run, Split()) for run in stream("structured", seed=2, runs=2, lumisections=400)]
    reference = Reference.fit(runs[0].part(Part.TRAIN))
    boxes = ReadoutBoxes(reference.live)
    return observe(reference, runs[1].part(Part.TEST).counts[:, reference.live].astype(np.float64)), boxes


def test_densities_are_those_of_the_normal_law_with_its_full_covariance() -> None:
    run = as_run_data(next(iter(stream("moderate", seed=2, runs=2, lumisections=400))), Split())
    reference = Reference.fit(run.part(Part.TRAIN))
    boxes = ReadoutBoxes(reference.live)
    counts = run.part(Part.TEST).counts[:4, reference.live].astype(np.float64)
    counts[1, 5:9] = 0  # cut at ten deviations, if the run expects them to count
    seen = observe(reference, counts)
    rng = np.random.default_rng(0)
    for k in range(3):
        gain, variance = 0.02 * rng.standard_normal(counts.shape[1]), np.zeros(len(boxes))
        gain[5:9] = (0.02, -1.0, -1.0, 0.6)[k]
        variance[[3, 7, 20][:k]] = (0.01**2, 0.05**2)[:k]
        found = log_densities(seen, boxes, KnownRuns(gain[None], variance[None]))[:, 0]
        conditions = fit_conditions(seen.of(slice(None, None, THINNED)), gain[::THINNED])
        under = seen.under(gain, conditions)
        expected = [_full_covariance(under.rows(np.array([i])), boxes, variance) for i in range(len(counts))]
        np.testing.assert_allclose(found - found[0], np.array(expected) - expected[0], rtol=1e-4, atol=5e-3)


def _full_covariance(under: Observation, boxes: ReadoutBoxes, variance: np.ndarray) -> float:
    noise = clipped(under)[0]
    events, pileup = under.leverage[0], under.rate_leverage[0]
    covariance = np.eye(noise.size) + WIDE * (np.outer(events, events) + np.outer(pileup, pileup))
    for box in np.flatnonzero(variance):
        inside = np.zeros_like(pileup)
        inside[boxes.cells[box]] = pileup[boxes.cells[box]]
        covariance += variance[box] * np.outer(inside, inside)
    density = -0.5 * noise @ np.linalg.solve(covariance, noise) - 0.5 * np.linalg.slogdet(covariance)[1]
    return float(density - np.log(under.deviation).sum())


@pytest.fixture
def without_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fit of conditions, which depends on the other runs of a block."""

    def as_they_are(seen: Observation, *_: object, **__: object) -> ConditionFactors:
        return ConditionFactors(*np.ones((2, len(seen.residual), 1), dtype=np.float32))

    monkeypatch.setattr(density, "fit_conditions", as_they_are)


@pytest.mark.usefixtures("without_fit")
def test_densities_of_many_runs_together_are_those_of_each_alone(observed: tuple[Observation, ReadoutBoxes]) -> None:
    seen, boxes = observed
    rng = np.random.default_rng(1)
    usual = 0.05 * rng.standard_normal(seen.residual.shape[1])
    gains = np.tile(usual, (150, 1))  # in three blocks
    gains[rng.random(gains.shape) < 0.01] = -1.0  # dead in a run, or far from what is usual
    gains[rng.random(gains.shape) < 0.01] = 0.7
    variances = np.where(rng.random((150, len(boxes))) < 0.05, 0.03**2, 0.0)
    runs = KnownRuns(gains, variances)
    runs.prefilter = None
    together = log_densities(seen, boxes, runs)
    plain = np.zeros(len(boxes))
    beside = [
        KnownRuns(np.stack([usual, usual, gain]), np.stack([plain, plain, variance]))
        for gain, variance in zip(gains, variances, strict=True)
    ]
    alone = np.stack([log_densities(seen, boxes, runs)[:, -1] for runs in beside], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=0.01)  # of some thousand nats, in float32


@pytest.mark.usefixtures("without_fit")
def test_the_linear_approximation_is_near_the_exact_density(
    observed: tuple[Observation, ReadoutBoxes],
) -> None:
    """For gains that differ by 1 %, as over 64 runs of a year, densities differ by some 10 nats and are right to about .5."""
    seen, boxes = observed
    rng = np.random.default_rng(1)
    gains = 0.05 * rng.standard_normal(seen.residual.shape[1]) + 0.01 * rng.standard_normal((40, seen.residual.shape[1]))
    variances = np.zeros((40, len(boxes)))
    together = log_densities(seen, boxes, KnownRuns(gains, variances))
    by_law = np.concatenate([log_densities(seen, boxes, KnownRuns(gains[[k]], variances[[k]])) for k in range(40)], axis=1)
    part = by_law - by_law.mean(axis=1, keepdims=True)
    off = np.abs(together - together.mean(axis=1, keepdims=True) - part)
    assert part.std() > 8
    assert np.median(off) < 0.8
    assert off.max() < 5
