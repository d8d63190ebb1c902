"""The density of a lumisection in a run is that of a normal law whose covariance can be written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dqmstream.experiments.cells import as_run_data
from dqmstream.experiments.simulator import stream
from dqmstream.learners.density import Runs, log_densities, without
from dqmstream.learners.modes import Look, Modes
from dqmstream.learners.reference import Reference
from dqmstream.learners.splits import Part, Split

WIDE = 1.0
"""Variance of a direction that is free, a change by 100 %: its size no longer matters, counts say it to a per mille."""


def test_densities_are_those_of_the_normal_law_written_out() -> None:
    run = as_run_data(next(iter(stream("moderate", seed=2, runs=2, lumisections=400))), Split())
    reference = Reference.fit(run.part(Part.TRAIN))
    modes = Modes(reference)
    counts = run.part(Part.TEST).counts[:4, reference.live].astype(np.float64)
    counts[1, 5:9] = 0  # cut at ten deviations, if the run expects them to count
    look = modes.look(counts)
    rng = np.random.default_rng(0)
    gains = 0.02 * rng.standard_normal((3, counts.shape[1]))
    gains[1, 5:9], gains[2, 40] = -1.0, 0.6
    variances = np.zeros((3, len(modes.boxes)))
    variances[1, 3], variances[2, [7, 20]] = 0.02**2, (0.01**2, 0.05**2)
    found = log_densities(look, modes, Runs(gains, variances))
    for i in range(len(counts)):
        one = replace(look, **{name: getattr(look, name)[i : i + 1] for name in vars(look)})
        expected = [_written_out(one, modes, gains[k], variances[k]) for k in range(3)]
        np.testing.assert_allclose(found[i] - found[i, 0], np.array(expected) - expected[0], rtol=1e-4, atol=1e-3)


def _written_out(look: Look, modes: Modes, gain: np.ndarray, variance: np.ndarray) -> float:
    noise = without(look, gain)[0]
    events = look.count_leverage[0]
    pileup = events * modes.sensitivity
    covariance = np.eye(noise.size) + WIDE * (np.outer(events, events) + np.outer(pileup, pileup))
    for box in np.flatnonzero(variance):
        inside = np.zeros_like(pileup)
        inside[modes.cells[box]] = pileup[modes.cells[box]]
        covariance += variance[box] * np.outer(inside, inside)
    return float(-0.5 * noise @ np.linalg.solve(covariance, noise) - 0.5 * np.linalg.slogdet(covariance)[1])


def test_what_is_taken_out_of_one_run_or_of_many_at_once_is_the_same() -> None:
    runs = [as_run_data(run, Split()) for run in stream("structured", seed=2, runs=2, lumisections=400)]
    reference = Reference.fit(runs[0].part(Part.TRAIN))
    modes = Modes(reference)
    look = modes.look(runs[1].part(Part.TEST).counts[:, reference.live].astype(np.float64))
    rng = np.random.default_rng(1)
    gains = 0.05 * rng.standard_normal((150, look.residual.shape[1]))  # in three blocks
    gains[rng.random(gains.shape) < 0.01] = -1.0  # dead in a run, or far from what is usual
    gains[rng.random(gains.shape) < 0.01] = 0.7
    variances = np.where(np.random.default_rng(2).random((150, len(modes.boxes))) < 0.05, 0.03**2, 0.0)
    together = log_densities(look, modes, Runs(gains, variances))
    alone = np.concatenate(
        [log_densities(look, modes, Runs(gains[k : k + 1], variances[k : k + 1])) for k in range(150)], axis=1
    )
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-7)
