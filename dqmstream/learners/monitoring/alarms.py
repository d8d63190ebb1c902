"""Alarms at a rate: which lumisections score higher than known runs do but for a share of their lumisections.

The p-values of the new-run score and of the fault score come from held-out lumisections of known runs
(`monitoring.known_scores`). While these are too few for the rate that is asked for, p is what the models say, which is right
only if the detector follows them, and the alarm is marked as not calibrated.

Known runs may hold faults. Where the law holds and few blocks have a certain fault, these are set aside, so that another such
fault raises an alarm. Where they are many, they are what known runs are like, and only more than that raises one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqmstream.errors import StateError
from dqmstream.learners.monitoring.known_scores import KnownScores
from dqmstream.learners.saved_state import prefixed, within

WINDOW_LENGTHS = (1, 3, 6, 11, 18, 26)
"""Classes of lengths of the new-run score, whose windows hold 30 lumisections at most."""

RUN_LENGTHS = (*WINDOW_LENGTHS, 36)
"""Those of the fault score, which is computed from all lumisections of a run so far."""

CERTAIN = 20.0
"""Log-odds from which a fault is certain, if the law of the response holds."""

RARE = 0.1
"""Share of blocks with a certain fault up to which they are set aside."""

_NEW_RUN, _FAULT = "alarms.new_run", "alarms.fault"


@dataclass(frozen=True, eq=False)
class Alarms:
    """Alarms of n lumisections at a rate.

    p: probability that a lumisection of a known run scores as high, (n,). calibrated: whether it comes from scores of known
    runs, bool (n,). raised: p is at most the rate, bool (n,).
    """

    p: np.ndarray
    calibrated: np.ndarray
    raised: np.ndarray


class AlarmRates:
    """Scores of held-out lumisections of known runs, and the alarms that follow from them."""

    def __init__(self) -> None:
        self.new_run, self.fault = KnownScores(WINDOW_LENGTHS), KnownScores(RUN_LENGTHS)

    def add(
        self,
        experience: int,
        new_run: Sequence[tuple[np.ndarray, np.ndarray]],
        fault: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Add both scores of the held-out blocks of a run, as in `KnownScores.add`."""
        self.new_run.add(experience, new_run)
        self.fault.add(experience, fault)

    def of_new_run(self, score: np.ndarray, length: np.ndarray, by_model: np.ndarray, rate: float = 1.0) -> Alarms:
        """Alarms of the new-run score. length: of the windows. by_model: p without known scores. All (n,)."""
        return _alarms(self.new_run, score, length, by_model, rate)

    def of_fault(self, score: np.ndarray, length: np.ndarray, by_model: np.ndarray, rate: float, law_holds: bool) -> Alarms:
        """Alarms of the fault score. length: lumisections of the run so far. by_model: p without known scores. All (n,)."""
        return _alarms(self.fault, score, length, by_model, rate, self._left_out(law_holds))

    def _left_out(self, law_holds: bool) -> float:
        """Fault score from which blocks are set aside."""
        return CERTAIN if law_holds and self.fault.share(CERTAIN) <= RARE else np.inf

    def calibrated(self, rate: float) -> dict[str, bool]:
        """Whether alarms of each score are calibrated at a rate."""
        return {"new_run": bool(rate >= self.new_run.least()), "fault": bool(rate >= self.fault.least())}

    def summary(self, law_holds: bool) -> dict[str, Any]:
        """How each score is calibrated, ready for JSON.

        blocks: how many are kept. independent_blocks: how many independent ones they are worth. least_rate: smallest rate that
        they support, None without enough of them. set_aside: share of the blocks with a certain fault that are not used.
        """
        aside = self.fault.share(CERTAIN) if np.isfinite(self._left_out(law_holds)) else 0.0
        return {"new_run": _summary(self.new_run), "fault": _summary(self.fault) | {"set_aside": round(aside, 3)}}

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        return prefixed(_NEW_RUN, self.new_run.state()) | prefixed(_FAULT, self.fault.state())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave; a state of an older version holds no scores. Raises StateError if damaged."""
        of_new_run, of_fault = within(state, _NEW_RUN), within(state, _FAULT)
        if bool(of_new_run) != bool(of_fault):
            raise StateError("the state lacks scores of known runs; it is damaged or of another version")
        self.new_run.restore(of_new_run)
        self.fault.restore(of_fault)


def _alarms(
    known: KnownScores,
    score: np.ndarray,
    length: np.ndarray,
    by_model: np.ndarray,
    rate: float,
    left_out: float = np.inf,
) -> Alarms:
    p = known.p(score, length, rate, left_out)
    calibrated = np.isfinite(p)
    p = np.where(calibrated, p, by_model)
    return Alarms(p, calibrated, p <= rate)


def _summary(known: KnownScores) -> dict[str, Any]:
    least = known.least()
    return {
        "blocks": len(known.run),
        "independent_blocks": round(known.independent(), 1),
        "least_rate": least if np.isfinite(least) else None,
    }
