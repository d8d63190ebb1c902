"""Flags: whether each lumisection of a run is new or faulty, and in which channels, by the newest checkpoint of a learner.

Archive and checkpoint are read and nothing is written, so runs can be flagged while the learner runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, norm

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.by_last import sums_of_last
from dqmstream.learners.evaluation.matrix_row import Scores
from dqmstream.learners.monitoring.alarms import AlarmRates
from dqmstream.learners.monitoring.known_scores import needed_blocks
from dqmstream.learners.response.saturating import Saturating
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.ledger import maps_of
from dqmstream.learners.stream.loaded import LoadedLearner
from dqmstream.learners.stream.run_flags import SUMMED, TOP, RunFlags
from dqmstream.learners.threads import held_threads
from dqmstream.lumisection import IETA
from dqmstream.storage.archive import Archive


class Flagger:
    """Flags runs of an archive with the newest checkpoint of a learner."""

    def __init__(self, archive: Archive, folder: Path, strategy: Strategy | None = None) -> None:
        """folder: of the learner. strategy: as in `LoadedLearner`.

        Raises StateError where the folder holds no checkpoint, a damaged one, or that of another archive.
        """
        learner = LoadedLearner(folder, strategy)
        if learner.archive_id != archive.archive_id:
            raise StateError(f"{folder} belongs to archive {learner.archive_id}, not {archive.archive_id}: give its --archive")
        self._archive, self._learner, self._novelty = archive, learner, learner.novelty

    @property
    def runs(self) -> list[int]:
        """The run of each experience that was learnt."""
        return self._learner.experiences

    def warnings(self, found: Sequence[RunFlags] = (), alarms: float = 0.01) -> list[str]:
        """Reasons why the flags at a rate of false alarms, and those of these runs, may be wrong; a sentence each."""
        reference = self._novelty.statistical.reference
        taught, warnings = reference.summary(), not_calibrated(self._novelty.alarms, alarms)
        if reference.kind != Saturating.kind:
            warnings.append(
                "the reference run does not follow the law of the response, or is too short to tell, so a quadratic is used: "
                "where luminosity differs from that of the reference run, lumisections may be called faulty without a fault; "
                "make a reference of more good lumisections (`dqmstream reference`) and learn with it"
            )
        warnings += [f"the law of the response is off, {told}" for told in (self.law or {}).get("sentences", [])]
        runs = [str(one.run) for one in found if one.beyond.any()]
        if runs:
            what = "pileups" if reference.kind == Saturating.kind else "ratios of dim to bright rings"
            span = f"{taught['lowest']:.2f} to {taught['highest']:.2f}"
            beyond = sum(int(one.beyond.sum()) for one in found)
            warnings.append(
                f"the reference covers {what} of {span} times those of its first run: the flags of {beyond} lumisections "
                f"outside that range are less certain (runs {', '.join(runs)})"
            )
        return warnings

    @property
    def law(self) -> dict[str, Any] | None:
        """Where the law of the response is off, by held-out lumisections of known runs (`LawWatch.summary`)."""
        return self._novelty.law_summary()

    def calibrated(self, alarms: float) -> dict[str, bool]:
        """Whether the alarms of each score, "new_run" and "fault", are calibrated at a rate."""
        return self._novelty.alarms.calibrated(alarms)

    def flags(self, run: int, alarms: float, rate: float, last: int = SUMMED) -> RunFlags:
        """Flag a run as the archive holds it.

        alarms: rate of false alarms among lumisections. rate: rate of false discoveries among channels. last: lumisections that
        name a run together. Raises ArchiveError for a run that the archive does not hold.
        """
        with held_threads(self._learner.threads):
            return self._flags(run, alarms, rate, last)

    def _flags(self, run: int, alarms: float, rate: float, last: int) -> RunFlags:
        maps, reference = maps_of(self._archive.run(run)), self._novelty.statistical.reference
        experiences = self._learner.experiences
        log_probability = self._learner.scores(maps)
        order = np.argsort(-log_probability, axis=1, kind="stable")[:, :TOP]
        new_run = self._novelty.score(maps)
        is_new = self._novelty.new_run_alarms(new_run, alarms)
        found = self._novelty.deviation(maps.take(np.flatnonzero(is_new.raised)) if is_new.raised.any() else maps)
        learnt = len(experiences) - 1 - experiences[::-1].index(run) if run in experiences else None
        suspicion, sure = self._novelty.fault_score(maps, learnt), np.log((1 - alarms) / alarms)
        blank = reference.blank(maps.counts[:, self._novelty.live])
        # The odds of a blank lumisection are those of the lumisections before it: no evidence of its own.
        failed = np.where((suspicion.channels >= sure) & ~blank[:, None], suspicion.channels, 0.0)
        some = np.flatnonzero(failed.any(axis=0))
        scores = Scores(log_probability, np.zeros(len(maps), dtype=np.int64), maps.lumisection)
        (sums,) = sums_of_last(scores, (last,), ~blank)
        together = sums.log_probability(self._learner.temper)
        return RunFlags(
            run=run,
            learnt=run in experiences,
            lumisection=maps.lumisection,
            blank=blank,
            beyond=reference.beyond(maps.counts),
            top=np.array(self._learner.runs)[order],
            probability=np.exp(np.take_along_axis(log_probability, order, axis=1)),
            last=last,
            top_by_last=np.array(self._learner.runs)[together.argmax(axis=1)],
            probability_by_last=np.exp(together.max(axis=1)),
            summed=sums.size,
            score=new_run.score,
            new_run=is_new,
            against=experiences[found.nearest],
            channels=_significant(found.pull, found.expected, found.seen, self._novelty.live, rate),
            fault=suspicion.score,
            of_fault=self._novelty.fault_alarms(suspicion.score, blank, alarms),
            failed=failed[:, some],
            places=[_place(*where) for where in np.argwhere(self._novelty.live)[some].tolist()],
        )


def not_calibrated(rates: AlarmRates, alarms: float) -> list[str]:
    """A warning for each score whose alarms are not calibrated at this rate."""
    warnings = []
    for name, known, rule in (
        ("flagged", rates.new_run, f"exp(-score) <= {alarms:g}"),
        ("faulty", rates.fault, f"P(no fault) <= {alarms:g}"),
    ):
        if alarms < known.least():
            warnings.append(
                f"`{name}` is not calibrated: a rate of {alarms:g} needs {needed_blocks(alarms):.1f} independent blocks of "
                f"held-out lumisections of known runs, and {known.independent():.1f} are known, so it means {rule}, which is "
                "right only where the detector follows the law of the response; learn more runs or raise --alarms"
            )
    return warnings


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
