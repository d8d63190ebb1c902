"""Estimates of how much channels or readout boxes differ, with moderated variances."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import f as f_distribution
from scipy.stats import t

OWN_VARIANCE_P = 1e-3
"""A channel whose variance is too large for the common one at this level keeps its own: it flickers, the others do not."""

_ALIKE = 1e-8
"""If the variance of log s² exceeds that of chance by less than this, all channels vary alike."""

_CHI2_MEDIAN = 0.45494
"""Median of chi² with one degree of freedom."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Half differences h of m channels or readout boxes, with standard errors and degrees of freedom: float64, (m,) each.

    The ratio of response is (1 + h) / (1 - h). An error of inf means that nothing can be said.
    """

    h: np.ndarray
    error: np.ndarray
    dof: np.ndarray

    @property
    def pull(self) -> np.ndarray:
        return self.h / self.error

    @property
    def p(self) -> np.ndarray:
        """Two-sided probability of a pull as large as this if nothing changed, by Student's t."""
        return np.asarray(2 * t.sf(np.abs(self.pull), self.dof))


def moderate(scale: np.ndarray, dof: int) -> tuple[np.ndarray, np.ndarray]:
    """Moderate variances: draw each towards the value that all have in common. Returns them with their degrees of freedom.

    scale: variances s² over their expected values, (m,), of dof d each. If they scatter by chance alone, all become the common
    value; else each becomes (d0 s0² + d s²) / (d0 + d), with s0² and d0 from the mean and variance of log s² without outliers
    (Smyth, Stat. Appl. Genet. Mol. Biol. 3 (2004) 3, sec. 6.2). A variance that is too large for this prior at OWN_VARIANCE_P
    is kept, with d degrees of freedom (after Phipson et al., Ann. Appl. Stat. 10 (2016) 946).
    """
    logs = np.log(np.maximum(scale, np.finfo(float).tiny)) - digamma(dof / 2) + np.log(dof / 2)
    middle = np.median(logs)
    near = np.abs(logs - middle) < 4 * 1.4826 * max(float(np.median(np.abs(logs - middle))), np.sqrt(polygamma(1, dof / 2)) / 2)
    mean = float(logs[near].mean())
    excess = float(logs[near].var(ddof=1) - polygamma(1, dof / 2)) if near.sum() > 1 else 0.0
    if excess <= _ALIKE:
        prior_dof, prior = inf, np.exp(mean)
        moderated, degrees = np.full_like(scale, prior), np.full(scale.shape, inf)
    else:
        prior_dof = 2 * brentq(lambda x: float(polygamma(1, x)) - excess, 1e-3, 1e9)
        prior = np.exp(mean + digamma(prior_dof / 2) - np.log(prior_dof / 2))
        moderated = (prior_dof * prior + dof * scale) / (prior_dof + dof)
        degrees = np.full(scale.shape, prior_dof + dof)
    own = f_distribution.sf(scale / prior, dof, min(prior_dof, 1e9)) < OWN_VARIANCE_P
    return np.where(own, scale, moderated), np.where(own, float(dof), degrees)


def spread_of(h: np.ndarray, error: np.ndarray) -> float:
    """Variance tau² of the true h over channels: the median of h² / (error² + tau²) is then that of chi².

    A few dead channels or boxes do not move it. 0 without channels.
    """
    if not len(h):
        return 0.0
    low, high = 0.0, float(np.median(h**2)) / _CHI2_MEDIAN
    if np.median((h / error) ** 2) <= _CHI2_MEDIAN:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        above = np.median(h**2 / (error**2 + middle)) > _CHI2_MEDIAN
        low, high = (middle, high) if above else (low, middle)
    return (low + high) / 2
