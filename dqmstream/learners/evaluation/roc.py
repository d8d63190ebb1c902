"""The ROC curve and the area under it (AUC)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    Computed from ranks as (sum of the positives' ranks - n(n+1)/2) / (n m) (Mann and Whitney, Ann. Math. Stat. 18 (1947) 50).
    nan where there is no positive or no negative, or a score is nan.
    """
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def auc_of_slice(scores: np.ndarray, positive: slice) -> float:
    """`auc` of the scores in a slice against all others. One sort makes it faster than ranks."""
    ascending, mine = np.sort(scores), scores[positive]
    n, m = len(mine), len(scores) - len(mine)
    # Each pair is counted twice, a tie once; pairs of two positives add up to n².
    twice = np.searchsorted(ascending, mine, side="left").sum() + np.searchsorted(ascending, mine, side="right").sum()
    return float((twice - n * n) / 2 / (n * m))


def one_against_rest(log_probability: np.ndarray, labels: np.ndarray) -> float:
    """AUC of a classifier, from log-probabilities (n, classes) and labels (n,).

    Of two classes: by the log-odds of the second. Of more: the mean over the classes, each against all others.
    """
    classes = log_probability.shape[1]
    if classes == 2:
        odds = log_probability[:, 1] - log_probability[:, 0]
        return auc(odds[labels == 1], odds[labels == 0])
    return float(np.mean([auc(log_probability[labels == k, k], log_probability[labels != k, k]) for k in range(classes)]))


def roc_curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-positive and true-positive rate at each threshold, from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve as curve  # imported here, since it takes a second

    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    false_rate, true_rate, _ = curve(truth, np.concatenate([positive, negative]), drop_intermediate=False)
    return np.asarray(false_rate), np.asarray(true_rate)
