"""The bounds are the exact likelihoods, checked against SciPy, quadrature and a general minimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import gammaln
from scipy.stats import binom, norm

from dqmstream.experiments.benchmark.bounds import fit_conditions, ideal, ideal_profiled
from dqmstream.experiments.benchmark.run_likelihood import RunTruth
from dqmstream.experiments.simulator import LIVE, SimulatedRun, probability, stream


def drawn(name: str, runs: int = 3, seed: int = 5) -> tuple[list[SimulatedRun], list[RunTruth], np.ndarray]:
    """Runs of 40 lumisections, their true parameters, and the counts of the last one's live channels."""
    simulated = list(stream(name, seed=seed, runs=runs, lumisections=40))
    return simulated, [RunTruth.of(run) for run in simulated], simulated[-1].counts[:, LIVE]


def test_ideal_is_the_binomial_likelihood_up_to_a_constant() -> None:
    simulated, truths, counts = drawn("moderate")
    last = simulated[-1]
    scores = ideal(counts, last.events, last.pileup, truths)
    p = [probability(truth.rate, last.pileup[:, None]) for truth in truths]
    by_scipy = np.stack([binom.logpmf(counts, last.events[:, None], one).sum(axis=1) for one in p], axis=1)
    finite = np.isfinite(by_scipy)
    np.testing.assert_array_equal(np.isfinite(scores), finite)
    shift = (scores - by_scipy)[:, -1:]
    np.testing.assert_allclose((scores - shift)[finite], by_scipy[finite], rtol=1e-9)


def test_a_count_in_a_dead_channel_excludes_the_run() -> None:
    _, truths, counts = drawn("null")
    silent = RunTruth(np.where(np.arange(counts.shape[1]) == 7, 0.0, truths[0].rate))
    scores = ideal(counts, np.full(40, 5000.0), np.full(40, 5.0), [truths[0], silent])
    assert np.isfinite(scores[:, 0]).all()
    assert (scores[counts[:, 7] > 0, 1] == -np.inf).all()


def test_common_mode_is_integrated_out() -> None:
    """One lumisection, box by box, against adaptive quadrature."""
    simulated, truths, counts = drawn("structured")
    last, truth = simulated[-1], truths[-1]
    events, pileup = last.events[3], last.pileup[3]
    quiet = RunTruth(truth.rate)
    expected = 0.0
    for movement in truth.law.movements:
        box = movement.channels

        def log_l(gain: float, box: np.ndarray = box) -> float:
            p = probability(truth.rate[box] * gain, pileup)
            return float(binom.logpmf(counts[3, box], events, p).sum())

        best = max(log_l(gain) for gain in np.linspace(0.85, 1.15, 61))
        integral, _ = quad(
            lambda gain, log_l=log_l, best=best: np.exp(log_l(gain) - best) * norm.pdf(gain, 1, 0.03),
            0.8,
            1.2,
            limit=200,
        )
        expected += np.log(integral) + best - log_l(1.0)
    noisy, still = (ideal(counts[3:4], np.array([events]), np.array([pileup]), [one])[0, 0] for one in (truth, quiet))
    assert noisy - still == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["moderate", "structured"])
def test_fitted_conditions_maximise_the_likelihood(name: str) -> None:
    _, truths, counts = drawn(name)
    few = counts[:3]
    events, pileup = fit_conditions(few, truths[-1])
    value = ideal_profiled(few, [truths[-1]])[:, 0]
    for row in range(len(few)):

        def deviance(at: np.ndarray, row: int = row) -> float:
            if at[0] < few[row].max() or at[1] <= 0:
                return np.inf
            of_n_alone = (gammaln(at[0] + 1) - gammaln(at[0] - few[row] + 1)).sum()
            return -float(ideal(few[row : row + 1], at[:1], at[1:], [truths[-1]])[0, 0] + of_n_alone)

        found = minimize(deviance, [few[row].max() + 2, 4.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-7})
        assert value[row] >= -found.fun - 1e-4
        assert pileup[row] == pytest.approx(found.x[1], rel=1e-3)
        assert events[row] == pytest.approx(found.x[0], abs=0.2)


def test_equal_runs_have_equal_scores() -> None:
    simulated, truths, counts = drawn("null")
    for scores in (ideal(counts, simulated[-1].events, simulated[-1].pileup, truths), ideal_profiled(counts, truths)):
        np.testing.assert_allclose(scores, np.repeat(scores[:, :1], len(truths), axis=1), atol=1e-3)
