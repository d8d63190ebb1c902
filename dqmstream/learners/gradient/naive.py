"""Naive: train on the new run alone, and forget. The lower bound of every comparison.

    L = CE(f(x), y),    (x, y) from the new run

From the third run on every label in a training is the same, which is what makes forgetting complete.
"""

from __future__ import annotations

from dqmstream.learners.gradient.method import Method


class Naive(Method):
    """Nothing is kept, nothing is added."""

    name = "naive"
