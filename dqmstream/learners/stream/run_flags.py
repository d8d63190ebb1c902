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
from dqmstream.storage.locks import write_atomically

TOP = 3
"""Most probable known runs that are given for a lumisection."""

CHANNELS_IN_TABLE = 5
"""Channels of its run that the table gives for a flagged lumisection."""


@dataclass(frozen=True, eq=False)
class RunFlags:
    """What is said of the n lumisections of a run.

    learnt: whether the checkpoint knows this run. lumisection, score, p: (n,), of `learners.monitoring.novelty`. top,
    probability: the
    most probable known runs by their number and the learner's probabilities, (n, up to 3). flagged: p is at most the rate of
    false alarms, bool (n,). against: the known run that channels are compared with, over the flagged lumisections if there
    are any, else over all. channels: those whose pull is significant at the false-discovery rate (Benjamini and Hochberg),
    largest first: ieta, iphi, depth, pull, p, expected and seen counts a lumisection.

    blank: lumisections that say nothing of any channel (`learners.blank`), bool (n,): no run is named for them, and the scores
    of those after them are what they would be without them.

    beyond: lumisections under conditions that the reference was not taught, of which all is less sure, bool (n,).

    fault: log-odds that something has failed (`learners.monitoring.fault_score`), (n,). faulty: good has at most the
    probability of the
    rate of false alarms, and the lumisection is not blank, bool (n,). failed: log-odds of each channel so, 0 where it is good
    or the lumisection blank, (n, channels of `places`). places: (ieta, iphi, depth).
    """

    run: int
    learnt: bool
    lumisection: np.ndarray
    blank: np.ndarray
    beyond: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    score: np.ndarray
    p: np.ndarray
    flagged: np.ndarray
    against: int
    channels: list[dict[str, Any]]
    fault: np.ndarray
    faulty: np.ndarray
    failed: np.ndarray
    places: list[tuple[int, int, int]]

    def faults(self) -> list[dict[str, Any]]:
        """The channels that failed, the one with most lumisections first: how many, the first and the last, largest odds."""
        rows = []
        for c, (ieta, iphi, depth) in enumerate(self.places):
            numbers = self.lumisection[self.failed[:, c] > 0]
            rows.append({
                "ieta": ieta, "iphi": iphi, "depth": depth, "lumisections": len(numbers), "first": int(numbers[0]),
                "last": int(numbers[-1]), "log_odds": float(self.failed[:, c].max()),
            })  # fmt: skip
        return sorted(rows, key=lambda row: -row["lumisections"])

    def summary(self) -> dict[str, Any]:
        """The run in one object, ready for JSON."""
        told = ~self.blank if not self.blank.all() else self.blank
        names, places = np.unique(self.top[told, 0], return_inverse=True)
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
            "probability": float(self.probability[told, 0][places == named].mean()),
            "median_score": float(np.median(self.score)),
            "against": self.against,
            "channels": self.channels,
            "faulty": int(self.faulty.sum()),
            "faults": self.faults(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each lumisection."""
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
                "score": round(float(self.score[i]), 3),
                "p": float(f"{self.p[i]:.3g}"),
                "flagged": int(self.flagged[i]),
                "against": self.against,
                "channels": names if self.flagged[i] else "",
                "fault": round(float(self.fault[i]), 3),
                "faulty": int(self.faulty[i]),
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
    """Write a CSV line for each lumisection. Raises InputError if the file cannot be written."""
    rows = [row for one in flags for row in one.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
