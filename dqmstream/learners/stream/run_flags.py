"""The flags of one run: whether each lumisection is new or faulty, and in which channels; as JSON and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.monitoring.alarms import Alarms
from dqmstream.storage.locks import write_atomically

TOP = 3
"""Most probable known runs that are given for a lumisection."""

SUMMED = 8
"""Lumisections that name a run together, unless another number is asked for."""

CHANNELS_IN_TABLE = 5
"""Channels of its run that the table gives for a flagged lumisection."""


@dataclass(frozen=True, eq=False)
class RunFlags:
    """Flags of the n lumisections of a run (docs/glossary.md has the words).

    learnt: whether the run is known at the checkpoint. lumisection: numbers, (n,).

    blank: no evidence of anything (`learners.blank`), bool (n,). No run is predicted for a blank lumisection, it is not faulty,
    and later scores are computed without it.

    beyond: the conditions are outside those that the reference covers, so that all scores are less certain; bool (n,).

    top, probability: the most probable known runs and the learner's probabilities, (n, up to 3). top_by_last,
    probability_by_last: the most probable known run by the last `last` lumisections together, and its probability, (n,);
    summed: how many of them are not blank, (n,) (`learners.evaluation.by_last`).

    score: the new-run score, (n,). new_run: its alarms at the rate of false alarms.

    against: the known run that channels are compared with, over the flagged lumisections if there are any, else over all.
    channels: those whose pull is significant at the false-discovery rate (Benjamini and Hochberg), largest first: ieta, iphi,
    depth, pull, p, and expected and seen counts a lumisection.

    fault: log-odds of a fault (`learners.monitoring.fault_score`), (n,). of_fault: its alarms. failed: log-odds of the channels
    in `places` where P(no fault) is at most the rate of false alarms, else 0, (n, channels). places: (ieta, iphi, depth).
    """

    run: int
    learnt: bool
    lumisection: np.ndarray
    blank: np.ndarray
    beyond: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    last: int
    top_by_last: np.ndarray
    probability_by_last: np.ndarray
    summed: np.ndarray
    score: np.ndarray
    new_run: Alarms
    against: int
    channels: list[dict[str, Any]]
    fault: np.ndarray
    of_fault: Alarms
    failed: np.ndarray
    places: list[tuple[int, int, int]]

    @property
    def p(self) -> np.ndarray:
        """Probability that a lumisection of a known run has such a new-run score, (n,)."""
        return self.new_run.p

    @property
    def flagged(self) -> np.ndarray:
        """Whether there is an alarm of the new-run score, bool (n,)."""
        return self.new_run.raised

    @property
    def faulty(self) -> np.ndarray:
        """Whether there is an alarm of the fault score, bool (n,); never for a blank lumisection."""
        return self.of_fault.raised & ~self.blank

    def faults(self) -> list[dict[str, Any]]:
        """The failed channels, those with most lumisections first: number of lumisections, first and last, largest log-odds."""
        rows = []
        for c, (ieta, iphi, depth) in enumerate(self.places):
            numbers = self.lumisection[self.failed[:, c] > 0]
            rows.append({
                "ieta": ieta, "iphi": iphi, "depth": depth, "lumisections": len(numbers), "first": int(numbers[0]),
                "last": int(numbers[-1]), "log_odds": float(self.failed[:, c].max()),
            })  # fmt: skip
        return sorted(rows, key=lambda row: -row["lumisections"])

    def summary(self) -> dict[str, Any]:
        """A summary of the run, ready for JSON."""
        counted = ~self.blank if not self.blank.all() else self.blank
        names, places = np.unique(self.top[counted, 0], return_inverse=True)
        named = int(np.bincount(places).argmax())
        return {
            "run": self.run,
            "learnt": self.learnt,
            "lumisections": len(self.lumisection),
            "blank": int(self.blank.sum()),
            "beyond": int(self.beyond.sum()),
            "flagged": int(self.flagged.sum()),
            "most_probable": int(names[named]),
            "named_so": int((places == named).sum()),
            "probability": float(self.probability[counted, 0][places == named].mean()),
            "by_last": self._summary_by_last(),
            "median_score": float(np.median(self.score)),
            "against": self.against,
            "channels": self.channels,
            "faulty": int(self.faulty.sum()),
            "calibrated": {"new_run": bool(self.new_run.calibrated.all()), "fault": bool(self.of_fault.calibrated.all())},
            "faults": self.faults(),
        }

    def _summary_by_last(self) -> dict[str, Any]:
        """The run that the last lumisections name most often, how often, and its mean probability there; None without any."""
        said = self.summed > 0
        names, places = np.unique(self.top_by_last[said], return_inverse=True)
        if not len(names):
            return {"lumisections": self.last, "most_probable": None, "named_so": 0, "probability": None}
        most = int(np.bincount(places).argmax())
        return {
            "lumisections": self.last,
            "most_probable": int(names[most]),
            "named_so": int((places == most).sum()),
            "probability": float(self.probability_by_last[said][places == most].mean()),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row of the table for each lumisection."""
        names = " ".join(
            f"{one['ieta']}/{one['iphi']}/{one['depth']}:{one['pull']:+.1f}" for one in self.channels[:CHANNELS_IN_TABLE]
        )
        return [
            {
                "run": self.run,
                "lumisection": int(self.lumisection[i]),
                "blank": int(self.blank[i]),
                "beyond": int(self.beyond[i]),
                **{name: value for place in range(TOP) for name, value in self._named(i, place).items()},
                "run_by_last": int(self.top_by_last[i]) if self.summed[i] else "",
                "probability_by_last": round(float(self.probability_by_last[i]), 4) if self.summed[i] else "",
                "summed": int(self.summed[i]),
                "score": round(float(self.score[i]), 3),
                "p": float(f"{self.p[i]:.3g}"),
                "flagged": int(self.flagged[i]),
                "calibrated": int(self.new_run.calibrated[i]),
                "against": self.against,
                "channels": names if self.flagged[i] else "",
                "fault": round(float(self.fault[i]), 3),
                "fault_p": float(f"{self.of_fault.p[i]:.3g}"),
                "faulty": int(self.faulty[i]),
                "fault_calibrated": int(self.of_fault.calibrated[i]),
                "faulty_channels": " ".join(
                    "/".join(map(str, self.places[c]))
                    for c in np.argsort(-self.failed[i], kind="stable")
                    if self.failed[i, c] > 0
                ),
            }
            for i in range(len(self.lumisection))
        ]

    def _named(self, i: int, place: int) -> dict[str, Any]:
        known = place < self.top.shape[1] and not self.blank[i]
        return {
            f"run_{place + 1}": int(self.top[i, place]) if known else "",
            f"probability_{place + 1}": round(float(self.probability[i, place]), 4) if known else "",
        }


def write_table(path: Path, flags: Sequence[RunFlags]) -> None:
    """Write a CSV file with a row for each lumisection. Raises InputError if it cannot be written."""
    rows = [row for one in flags for row in one.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
