"""Streams for the tests of learners: those that the checks ship with, and the accuracy of a strategy on one."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.checks.streams import FIRST_RUN, RING_LAMBDA, K, draw_run, make_stream, reader
from dqmstream.learners.maps import RunData
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Strategy

__all__ = ["FIRST_RUN", "RING_LAMBDA", "K", "draw_run", "make_stream", "reader"]


def accuracy(strategy: Strategy, stream: list[RunData]) -> float:
    """Mean accuracy over the runs' test parts after learning them all."""
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    hits = [np.mean(strategy.scores(run.part(Part.TEST)).argmax(axis=1) == i) for i, run in enumerate(stream)]
    return float(np.mean(hits))
