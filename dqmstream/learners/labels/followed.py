"""From a run to labelled rows: residuals to gains that are followed from run to run, by the fault score.

Residuals to the first run grow with every drift, and hide a fault among them. Gains are followed on lumisections of the train
part that are labelled good; nothing else is learnt from labels here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.blank import informative
from dqmstream.learners.labels.rows import FAULTY, GOOD, Rows, coded
from dqmstream.learners.learnable import FEWEST_TRAIN_LUMISECTIONS, has_counts
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part


class FollowedGains:
    """The reference and the gains, as they are after the last run."""

    def __init__(self) -> None:
        self._given: Reference | None = None
        self._score: FaultScore | None = None

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted to the first run; call it before the first run or `restore`."""
        self._given = reference

    @property
    def runs(self) -> int:
        """Number of runs followed."""
        return 0 if self._score is None else self._score.runs

    @property
    def live(self) -> np.ndarray:
        """The channels of a row: bool, (depth, 64, 72). Raises InputError before the first run."""
        if self._score is None:
            raise InputError("no run was learnt yet: learn one before asking for labelled lumisections")
        return self._score.reference.live

    def rows(self, run: RunData) -> Rows:
        """The labelled lumisections of a run that are not blank, under the gains of the runs before it."""
        labels = labels_of(run)
        if self._score is None:
            raise InputError("no run was learnt yet: learn one before asking for labelled lumisections")
        maps = run.maps
        suspicion, residuals = self._score.followed(maps)
        counts = maps.counts[:, self.live].astype(np.float64)
        use = np.flatnonzero((labels >= 0) & ~self._score.reference.blank(counts))
        conditions = self._score.reference.conditions_of_live(counts[use])
        return Rows(
            values=coded(residuals[use], conditions),
            fault=suspicion.score[use],
            label=np.where(labels[use] == 1, GOOD, FAULTY).astype(np.int64),
            part=run.parts[use],
            run=np.full(len(use), run.run, dtype=np.int64),
            lumisection=maps.lumisection[use],
        )

    def follow(self, run: RunData) -> None:
        """Follow the gains of a run by its good train lumisections; few of them change nothing."""
        good = good_train(run)
        if self._score is None:
            self._score = FaultScore(self._given or Reference.fit(good))
        elif len(good) < FEWEST_TRAIN_LUMISECTIONS:
            return
        elif self._given is None:
            self._score.set_reference(self._score.reference.updated_by(good))
        self._score.learn(good)

    def state(self) -> dict[str, np.ndarray]:
        """Reference and gains, as named arrays."""
        if self._score is None:
            return {}
        return prefixed("reference", self._score.reference.state()) | prefixed("gains", self._score.state())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged."""
        self._score = None
        if state:
            self._score = FaultScore(Reference.from_state(within(state, "reference")))
            self._score.restore(within(state, "gains"))


def labels_of(run: RunData) -> np.ndarray:
    """The labels of a run: 1 good, 0 faulty, -1 without a label. Raises StateError where nobody read them."""
    if run.labels is None:
        raise StateError(f"run {run.run} was read without labels")
    return run.labels


def good_train(run: RunData) -> Maps:
    """Train lumisections that are labelled good and not blank."""
    chosen = np.zeros(len(run.maps), dtype=bool)
    chosen[informative(run.maps.counts)] = True
    chosen &= (run.parts == Part.TRAIN) & (labels_of(run) == 1) & has_counts(run.maps)
    return run.maps.take(np.flatnonzero(chosen))


def why_left_out(run: RunData, *, as_reference: bool) -> str:
    """Why a run cannot be used in the task of labels; "" where it can.

    as_reference: it is the first run, from whose good train lumisections the reference is fitted.
    """
    labels = labels_of(run)
    if not (labels >= 0).any():
        return "without labels: no lumisection is labelled good or faulty; import labels, then `dqmstream learn --again` it"
    if not as_reference:
        return ""
    good = good_train(run)
    if len(good) < FEWEST_TRAIN_LUMISECTIONS:
        return (
            f"it cannot be the first run: {len(good)} lumisections for train are labelled good and count anything, "
            f"{FEWEST_TRAIN_LUMISECTIONS} are needed"
        )
    try:
        Reference.fit(good)
    except InputError as error:
        return f"it cannot be the first run: {error}"
    return ""
