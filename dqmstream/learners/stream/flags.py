"""Flags: what the newest checkpoint says of each lumisection of a run: is it new, has something failed, in which channels.

Archive and checkpoint are read and nothing is written, so it works beside a learner that runs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import false_discovery_control, norm

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.evaluator import by_run, newest_of_run
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.registry import make_strategy, recipe_of
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.saved_state import within
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.ledger import maps_of
from dqmstream.learners.stream.state_folder import read_json
from dqmstream.learners.threads import held_threads
from dqmstream.lumisection import IETA
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import write_atomically

TOP = 3
"""Most probable runs that are told of a lumisection."""

CHANNELS_IN_TABLE = 5
"""Channels of its run that stand beside a lumisection in a table."""


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


class Flagger:
    """The newest checkpoint of a learner, ready to be asked."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        """folder: of the learner. Raises StateError where it holds no checkpoint, a damaged one, or another archive's."""
        self._archive = archive
        found = checkpoint.load_newest(folder / "checkpoints")
        if found is None:
            there = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/checkpoints"))) or "none"
            raise StateError(
                f"{folder} holds no checkpoint; run `dqmstream learn`, or give --state and --name; learners there: {there}"
            )
        meta, arrays = found
        if meta.archive_id != archive.archive_id:
            raise StateError(f"{folder} belongs to archive {meta.archive_id}, not {archive.archive_id}: give its --archive")
        told = read_json(folder / "state.json")
        self.strategy = make_strategy(
            meta.strategy,
            geometry=archive.geometry,
            seed=meta.seed,
            recipe=recipe_of(meta.strategy, told.get("recipe", {})),
            memory_bytes=meta.memory_bytes,
            device="cpu",
        )
        self.novelty = Novelty(archive.geometry, meta.seed)
        own, beside = within(arrays, "strategy"), within(arrays, "novelty")
        if not Novelty.holds_all(beside):
            raise StateError(f"the checkpoint in {folder} holds no new-run or fault score: let the learner learn one more run")
        if told.get("reference"):
            given = Reference.from_state(within(beside, "reference"))
            self.strategy.set_reference(given)
            self.novelty.set_reference(given)
        self.strategy.restore(own)
        self.novelty.restore(beside)
        self.runs = meta.runs
        self._threads = meta.threads

    def warnings(self, found: Sequence[RunFlags] = ()) -> list[str]:
        """What weakens what is said here, and of these runs, each in a sentence."""
        reference = self.novelty.statistical.reference
        told, warnings = reference.summary(), []
        if reference.kind != Saturating.kind:
            warnings.append(
                "the reference run does not follow the law of the response, or is too short to tell: a quadratic stands in its "
                "place, which is off where luminosity is not the reference run's, so that faulty may mean nothing; make a "
                "reference of more good lumisections (`dqmstream reference`) and learn with it"
            )
        runs = [str(one.run) for one in found if one.beyond.any()]
        if runs:
            what = "pileups" if reference.kind == Saturating.kind else "ratios of dim to bright rings"
            span = f"{told['lowest']:.2f} to {told['highest']:.2f}"
            beyond = sum(int(one.beyond.sum()) for one in found)
            warnings.append(
                f"the reference was taught {what} of {span} times those of its first run: what is said of {beyond} "
                f"lumisections beyond is less sure (runs {', '.join(runs)})"
            )
        return warnings

    def flags(self, run: int, alarms: float, rate: float) -> RunFlags:
        """Flag a run as the archive holds it. alarms: of false alarms, by lumisection. rate: of false discoveries, by channel.

        Raises ArchiveError for a run that is not there.
        """
        with held_threads(self._threads):
            return self._flags(run, alarms, rate)

    def _flags(self, run: int, alarms: float, rate: float) -> RunFlags:
        maps, reference = maps_of(self._archive.run(run)), self.novelty.statistical.reference
        kept = np.unique(newest_of_run(self.runs))
        log_probability = by_run(log_softmax(self.strategy.scores(maps), axis=1), self.runs)[:, kept]
        order = np.argsort(-log_probability, axis=1, kind="stable")[:, :TOP]
        noted = self.novelty.score(maps)
        flagged = noted.p <= alarms
        found = self.novelty.deviation(maps.take(np.flatnonzero(flagged)) if flagged.any() else maps)
        apart = 1 + self.runs[::-1].index(run) if run in self.runs else 1
        suspicion, sure = self.novelty.faults.score(maps, apart), np.log((1 - alarms) / alarms)
        blank = reference.blank(maps.counts[:, self.novelty.live])
        # What a blank lumisection seems to say is said by those before it, or by what was expected before the run began.
        failed = np.where((suspicion.channels >= sure) & ~blank[:, None], suspicion.channels, 0.0)
        some = np.flatnonzero(failed.any(axis=0))
        return RunFlags(
            run=run,
            learnt=run in self.runs,
            lumisection=maps.lumisection,
            blank=blank,
            beyond=reference.beyond(maps.counts),
            top=np.array(self.runs)[kept][order],
            probability=np.exp(np.take_along_axis(log_probability, order, axis=1)),
            score=noted.score,
            p=noted.p,
            flagged=flagged,
            against=self.runs[found.nearest],
            channels=_significant(found.pull, found.expected, found.seen, self.novelty.live, rate),
            fault=suspicion.score,
            faulty=(suspicion.score >= sure) & ~blank,
            failed=failed[:, some],
            places=[_place(*where) for where in np.argwhere(self.novelty.live)[some].tolist()],
        )


def _significant(
    pull: np.ndarray, expected: np.ndarray, seen: np.ndarray, live: np.ndarray, rate: float
) -> list[dict[str, Any]]:
    p = 2 * norm.sf(np.abs(pull))
    named = np.flatnonzero(false_discovery_control(p) <= rate)
    places = np.argwhere(live).tolist()
    return [
        {
            **dict(zip(("ieta", "iphi", "depth"), _place(*places[c]), strict=True)),
            "pull": float(pull[c]),
            "p": float(p[c]),
            "expected": float(expected[c]),
            "seen": float(seen[c]),
        }
        for c in named[np.argsort(-np.abs(pull[named]), kind="stable")]
    ]


def _place(depth: int, row: int, column: int) -> tuple[int, int, int]:
    """(ieta, iphi, depth) of a cell."""
    return int(IETA[row]), column + 1, depth + 1


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
