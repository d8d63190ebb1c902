"""Baselines without a network: a few sums per image (for runs two ring means), and a linear classifier of mean images.

Both read the train part once, a buffer at a time, and keep a few numbers per pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dqmstream.experiments.studies.training.batches import Images, buffer_rows, in_order
from dqmstream.learners.response.reference import A_RINGS, B_RINGS
from dqmstream.lumisection import IETA

Scorer = Callable[[np.ndarray], np.ndarray]
"""Images (n, C, H, W) to log-probabilities (n, classes)."""

SHRINK = 0.1
"""Share of the mean variance that is added to that of each pixel; the variance of a pixel that rarely counts is uncertain."""


def ring_means(x: np.ndarray) -> np.ndarray:
    """Two numbers that measure luminosity, (n, 2): sums over the rings |ieta| 19-23 and 26-28 of all depths."""
    ring = np.abs(IETA)
    return np.stack([x[:, :, (ring >= a) & (ring <= b)].sum(axis=(1, 2, 3)) for a, b in (A_RINGS, B_RINGS)], axis=1)


def channel_sums(x: np.ndarray) -> np.ndarray:
    """The sum of each channel, (n, C): the energy of a shower or a jet."""
    return np.asarray(x.sum(axis=(2, 3), dtype=np.float64))


def discriminant_of(images: Images, rows: np.ndarray, numbers: Callable[[np.ndarray], np.ndarray]) -> Scorer:
    """Quadratic discriminant analysis of a few numbers per image, with equal priors."""
    classes = len(images.classes)
    found = np.concatenate([numbers(x) for x, _ in in_order(images, rows, buffer_rows(images))])
    # Without regularisation a number that is constant in a class gives an infinite likelihood.
    analysis = QuadraticDiscriminantAnalysis(priors=np.full(classes, 1 / classes), reg_param=1e-6, tol=0.0)
    fitted: Pipeline = make_pipeline(StandardScaler(), analysis).fit(found, images.labels[rows])
    return lambda x: np.asarray(fitted.predict_log_proba(numbers(x)))


@dataclass(frozen=True, eq=False)
class MeanImages:
    """Independent Gaussians with a mean image per class and a common variance per pixel: linear in the pixels.

    score_k = sum_p (x_p m_kp - m_kp² / 2) / v_p
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def fit(cls, images: Images, rows: np.ndarray) -> MeanImages:
        """Fit mean (classes, pixels) and variance within the classes (pixels,) to rows of images."""
        classes, pixels = len(images.classes), int(np.prod(images.shape[1:]))
        total, squares = np.zeros((classes, pixels)), np.zeros((classes, pixels))
        for x, y in in_order(images, rows, buffer_rows(images)):
            flat = x.reshape(len(x), pixels).astype(np.float64)
            for k in range(classes):
                total[k] += flat[y == k].sum(axis=0)
                squares[k] += (flat[y == k] ** 2).sum(axis=0)
        size = np.bincount(images.labels[rows], minlength=classes)[:, None]
        mean = total / size
        variance = (squares - size * mean**2).sum(axis=0) / max(len(rows) - classes, 1)
        variance = np.maximum(variance, 0.0)
        return cls(mean, variance + max(SHRINK * float(variance.mean()), 1e-12))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        weights = self.mean / self.variance
        scores = x.reshape(len(x), -1).astype(np.float64) @ weights.T - (self.mean * weights).sum(axis=1) / 2
        return np.asarray(log_softmax(scores, axis=1))


def baselines(images: Images, train: np.ndarray, task: str) -> dict[str, Scorer]:
    """The baselines of a task by name, fitted on train rows."""
    few = ("two ring means", ring_means) if task == "two_runs" else ("channel sums", channel_sums)
    return {few[0]: discriminant_of(images, train, few[1]), "mean images (linear)": MeanImages.fit(images, train)}


def score_rows(images: Images, rows: np.ndarray, scorer: Scorer) -> np.ndarray:
    """Log-probabilities (n, classes) of rows in ascending order."""
    return np.concatenate([scorer(x) for x, _ in in_order(images, rows, buffer_rows(images))])
