"""Forgetting of a detector: it is re-tested on the conditions and faults of early runs after it has learnt later ones.

R[t, i] is the AUC of faulty against good lumisections under the conditions of run i after run t was learnt: luminosity and
faults of run i, gains of run t, and new counts. A drift that the detector has followed therefore costs nothing; conditions that
have not occurred for long do if it has forgotten them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dqmstream.experiments.faults.track import Track
from dqmstream.experiments.simulator import SimulatedRun
from dqmstream.learners.evaluation.metrics import Matrix, forgetting, matrix
from dqmstream.learners.evaluation.roc import auc


class Retest:
    """The rows of R, one after each re-tested run that has good and faulty lumisections."""

    def __init__(self, seed: int, every: int) -> None:
        """every: a row is added at each such run."""
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
        """runs: those re-tested; auc: R, a row for each of them; forgetting: of `learners.evaluation.metrics`."""
        auc_matrix: Matrix = matrix(self._rows)
        return {"runs": [run.run for run in self._early], "auc": auc_matrix, "forgetting": forgetting(auc_matrix)}
