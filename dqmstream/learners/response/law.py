"""The law of one channel: how often it fires in an event, as a function of pileup.

In an event, a channel with rate x = R λ fires with probability

    P(x) = 1 - (1 + x / k)^-k,    k = 4.75.

R is the pileup of the lumisection relative to the reference run, λ the rate of the channel in the reference run. So N events
give N A P counts on average, with variance N A P (1 - P), where A is the channel's efficiency. The two published runs of HE
depth 1 follow this law.
"""

from __future__ import annotations

import numpy as np

SHAPE = 4.75
"""k. In the two published runs the ring means agree with the law within 1.5 % over a factor of 12 in pileup."""


def probability(rate: np.ndarray) -> np.ndarray:
    """P for rates R λ >= 0, any shape."""
    return -np.expm1(-SHAPE * np.log1p(rate / SHAPE))


def rate_of(probability: np.ndarray) -> np.ndarray:
    """Rate R λ for probabilities P in [0, 1): the inverse of `probability`."""
    return SHAPE * np.expm1(-np.log1p(-probability) / SHAPE)


def silence(rate: np.ndarray) -> np.ndarray:
    """1 - P for rates R λ >= 0: the probability that a channel stays silent in an event.

    Written with square roots, since 4 k is a whole number: five times as fast as `probability`.
    """
    x = 1 + rate / SHAPE
    square = x * x
    return np.asarray(np.sqrt(np.sqrt(x)) / (square * square * x))


def sensitivity(silence: np.ndarray) -> np.ndarray:
    """d log P / d log (R λ) as a function of q = 1 - P:  k (q - q^(1 + 1/k)) / (1 - q).

    About .55 in the dimmest rings of HE and .004 in the brightest, whose channels fire in nearly every event.
    """
    return SHAPE * (silence - silence ** (1 + 1 / SHAPE)) / (1 - silence)
