"""What a detector has forgotten: faults under the conditions of early runs, had again on the detector as it is later.

R[t, i] is the AUC of faulty lumisections against good ones in run i had again once run t has been learnt: the luminosity and
the faults of run i, the gains of run t, and new counts. So a drift that is known is no loss, and conditions that were long
not met are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dqmstream.experiments.faults.track import Track
from dqmstream.experiments.simulator import SimulatedRun
from dqmstream.learners.evaluation.evaluator import auc
from dqmstream.learners.evaluation.metrics import Matrix, forgetting, matrix


class Replayed:
    """Row after row of R, for every so many runs that have both labels."""

    def __init__(self, seed: int, every: int) -> None:
        self._seed, self._every = seed, every
        self._early: list[SimulatedRun] = []
        self._rows: list[Sequence[float]] = []

    def add(self, index: int, run: SimulatedRun, track: Track) -> None:
        """A run that the detector has just learnt; index counts from 0."""
        if index == 0 or index % self._every or not 0 < run.faulty.sum() < len(run.faulty):
            return
        self._early.append(run)
        row = []
        for early in self._early:
            rng = np.random.default_rng([self._seed, index, early.run])
            score = track.look(early.redraw(run.rate, rng)).score
            row.append(auc(score[early.faulty], score[~early.faulty]))
        self._rows.append(row)

    def results(self) -> dict[str, object]:
        """runs: those that were had again; auc: R, a row for each of them; forgetting of `learners.evaluation.metrics`."""
        found: Matrix = matrix(self._rows)
        return {"runs": [run.run for run in self._early], "auc": found, "forgetting": forgetting(found)}
