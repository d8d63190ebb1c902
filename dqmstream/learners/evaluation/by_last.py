"""Answers by the last n lumisections: log p(run | map) is summed over them, and the sum names the run.

    log P(k | last n) = s_k / tau - log sum over j of exp(s_j / tau),    s_k = sum over i in the last n of log p(k | x_i)

The last n of lumisection l are the evaluated lumisections of its run with numbers l - n + 1 to l: never later ones, nor those
of another run. Fewer are summed at the beginning of a run or block, and where lumisections are blank or missing. Test blocks
are farther apart than any n here, so no sum reaches over the gap between two (`learners.splits`).

With tau = 1 the sum is Bayes' rule for lumisections that are independent, given the run. They are not where a strategy knows
less of the conditions than neighbours share: then each repeats in part what the one before it said, and the sum is too sure.
`fit_correlation` measures that on validation lumisections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from dqmstream.learners.evaluation.calibration import expected_calibration_error, negative_log_likelihood
from dqmstream.learners.evaluation.history_line import LENGTHS, ByLast, Calibration
from dqmstream.learners.evaluation.matrix_row import Scores, by_experience

FITTED = 8
"""The n of the sums that the correlation is fitted on: a validation block has 10 lumisections."""

IMPOSSIBLE = -1e6
"""Log-probability in place of minus infinity, so that sums can be subtracted."""


@dataclass(frozen=True)
class Temper:
    """How much less sure than their sum the last lumisections are: tau = temperature x (1 + (size - 1) x correlation).

    temperature: of single lumisections. correlation, 0 to 1: 0 where lumisections are independent; 1 where neighbours say the
    same, so that the sum is worth one lumisection. It enters as the design effect of Kish (*Survey Sampling*, 1965, section
    5.4): `size` lumisections are worth size / (1 + (size - 1) x correlation) independent ones.
    """

    temperature: float
    correlation: float

    def tau(self, size: np.ndarray) -> np.ndarray:
        """tau of a sum over `size` lumisections."""
        return np.asarray(self.temperature * (1 + np.maximum(size - 1, 0) * self.correlation))


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of log-probabilities over the last lumisections of each of n lumisections, by run and number.

    total: float64, (n, T). labels, lumisection: as in `Scores`, (n,). size: how many lumisections were summed, int (n,); where
    it is 0, the sum is 0 for all runs.
    """

    total: np.ndarray
    labels: np.ndarray
    lumisection: np.ndarray
    size: np.ndarray

    def log_probability(self, temper: Temper | None = None) -> np.ndarray:
        """log P(k | last n), (n, T), with the tau of the temper; tau = 1 by default."""
        if temper is None:
            shifted = self.total - self.total.max(axis=1, keepdims=True)
        else:
            shifted = self.total / temper.tau(self.size)[:, None]
            shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return shifted


def sums_of_last(scores: Scores, lengths: Sequence[int] = LENGTHS, counted: np.ndarray | None = None) -> list[Sums]:
    """The sums over the last n lumisections, for each n of `lengths`, in the order of run and number.

    counted: which lumisections are evidence, bool (n,); all by default. One that is not, or has a nan, adds nothing.
    """
    order = np.lexsort((scores.lumisection, scores.labels))
    labels, number = scores.labels[order], scores.lumisection[order]
    evidence = ~np.isnan(scores.log_probability).any(axis=1) & (True if counted is None else counted)
    added = np.where(evidence[:, None], np.maximum(scores.log_probability, IMPOSSIBLE), 0.0)[order]
    evidence = evidence[order].astype(np.int64)
    found = [(np.empty_like(added), np.empty(len(added), dtype=np.int64)) for _ in lengths]
    # Blocks are summed one by one, so that a sum does not depend on the other blocks, also not by rounding.
    breaks = (np.diff(labels) != 0) | (np.diff(number) >= max(lengths))
    for block in np.split(np.arange(len(added)), np.flatnonzero(breaks) + 1):
        if not len(block):
            continue
        here = slice(block[0], block[-1] + 1)
        up_to = np.cumsum(np.vstack([np.zeros((1, added.shape[1])), added[here]]), axis=0)
        counts = np.cumsum(np.append(0, evidence[here]))
        for n, (total, size) in zip(lengths, found, strict=True):
            first = np.searchsorted(number[here], number[here] - n, side="right")
            np.subtract(up_to[1:], up_to[first], out=total[here])
            np.subtract(counts[1:], counts[first], out=size[here])
    return [Sums(total, labels, number, size) for total, size in found]


def fit_correlation(validation: Scores, temperature: float) -> float:
    """The correlation at which sums over the last 8 validation lumisections have the smallest negative log-likelihood."""
    (sums,) = sums_of_last(validation, (FITTED,))

    def loss(correlation: float) -> float:
        return negative_log_likelihood(sums.log_probability(Temper(temperature, correlation)), sums.labels)

    found = minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded", options={"xatol": 3e-3})
    return float(found.x) if found.fun < loss(0.0) else 0.0


def figures_by_last(
    test: Scores, newest: np.ndarray, validation: Scores | None = None, temperature: float | None = None
) -> list[ByLast]:
    """Figures of the test lumisections by the last n, for each n of `LENGTHS`; none where there is no lumisection.

    newest: `repeated_runs.newest_of_run`. validation, temperature: lumisections and fit for the calibrated figures; without
    either these are None.
    """
    if not len(test.labels):
        return []
    temper = None
    if validation is not None and temperature is not None and len(validation.labels):
        temper = Temper(temperature, fit_correlation(validation, temperature))
    return [_figures(n, sums, newest, temper) for n, sums in zip(LENGTHS, sums_of_last(test), strict=True)]


def _figures(n: int, sums: Sums, newest: np.ndarray, temper: Temper | None) -> ByLast:
    log_probability, labels = sums.log_probability(), sums.labels
    found = by_experience(log_probability, labels)
    there = [i for i, of_run in enumerate(newest.tolist()) if of_run in found]
    nll, ece = negative_log_likelihood(log_probability, labels), expected_calibration_error(log_probability, labels)
    after: tuple[float | None, float | None] = (None, None)
    if temper is not None:
        cooled = sums.log_probability(temper)
        after = negative_log_likelihood(cooled, labels), expected_calibration_error(cooled, labels)
    return ByLast(
        lumisections=n,
        summed=float(sums.size.mean()),
        experiences=None if len(there) == len(newest) else there,
        accuracy=[found[newest[i]][0] for i in there],
        auc=[found[newest[i]][1] for i in there],
        correlation=None if temper is None else temper.correlation,
        calibration=Calibration(nll, ece, None if temper is None else temper.temperature, *after),
    )
