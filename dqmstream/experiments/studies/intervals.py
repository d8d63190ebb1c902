"""95 % intervals of an AUC and an accuracy on a test part, where several rows may belong to one independent observation.

They cover the choice of the tested rows, not the randomness of the training: other seeds and folds have their own rows.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, rankdata, t

from dqmstream.experiments.statistics import CONFIDENCE, Interval

_TAIL = (1 - CONFIDENCE) / 2


def auc_interval(positive: np.ndarray, negative: np.ndarray, units: tuple[np.ndarray, np.ndarray]) -> Interval:
    """AUC with an interval on the logit scale, from the variance of DeLong et al. (Biometrics 44 (1988) 837).

    positive, negative: scores (n,), (m,). units: the observation of each score. If several rows share one, the variance is that
    of the sums over observations (Obuchowski, Biometrics 53 (1997) 567, for observations of one class), with Student's quantile
    for the smaller number of observations minus one. If all pairs are in order, the lower end is .025^(1/n) for n observations.
    """
    n, m = len(positive), len(negative)
    both = rankdata(np.concatenate([positive, negative]))
    above = (both[:n] - rankdata(positive)) / m  # share of negatives below each positive
    below = 1 - (both[n:] - rankdata(negative)) / n
    value = float(above.mean())
    counts, variance = [], 0.0
    for share, unit in ((above, units[0]), (below, units[1])):
        number = np.unique(unit, return_inverse=True)[1]
        sums = np.bincount(number, share - value)
        k = len(sums)
        counts.append(k)
        variance += k / max(k - 1, 1) * float((sums**2).sum()) / len(share) ** 2
    fewest = min(counts)
    if value in (0.0, 1.0):
        beyond = _TAIL ** (1 / fewest)
        return Interval(value, beyond, 1.0) if value else Interval(value, 0.0, 1 - beyond)
    if fewest < 2:
        return Interval(value, 0.0, 1.0)
    quantile = float(t.ppf(1 - _TAIL, fewest - 1))
    middle, half = np.log(value / (1 - value)), quantile * np.sqrt(variance) / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half)))) for side in (-1, 1))
    return Interval(value, low, high)


def accuracy_interval(right: np.ndarray, unit: np.ndarray) -> Interval:
    """Share of right answers with Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209).

    right: bool (n,). unit: the observation of each answer, (n,). The number of independent answers is the one that gives the
    variance of the sums over observations; it lies between the numbers of observations and of rows.
    """
    n, value = len(right), float(right.mean())
    number = np.unique(unit, return_inverse=True)[1]
    sums = np.bincount(number, right - value)
    k = len(sums)
    variance = k / max(k - 1, 1) * float((sums**2).sum()) / n**2
    worth = float(np.clip(value * (1 - value) / variance, k, n)) if variance > 0 else float(k)
    z2 = float(norm.ppf(1 - _TAIL)) ** 2
    middle = (value + z2 / (2 * worth)) / (1 + z2 / worth)
    half = np.sqrt(z2 * (value * (1 - value) / worth + z2 / (4 * worth**2))) / (1 + z2 / worth)
    return Interval(value, float(max(0.0, middle - half)), float(min(1.0, middle + half)))
