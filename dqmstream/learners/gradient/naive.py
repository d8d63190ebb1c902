"""Naive: train on the new run alone. The lower bound of every comparison.

    L = CE(f(x), y),    (x, y) from the new run

f: the network's logits; x, y: residuals and label of a lumisection; CE: cross-entropy. From the third run on all lumisections
of a training have the same label, so forgetting is complete.
"""

from __future__ import annotations

from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.strategy import register_method


@register_method("naive")
class Naive(Method):
    """Keeps nothing and adds nothing to the loss."""

    name = "naive"
