"""The new-run score: the evidence that the last lumisections belong to no known run.

A statistical memory (`closed_form.statistical`) learns every run beside the learner. For each lumisection, the window of up to
30 lumisections that ends with it is compared with the known run nearest to the window:

    score = log Bayes factor of drifted or faulty channels + that of changed common modes    (`monitoring.evidence`)

A single lumisection can show a fault; a drift of all channels shows only in the sum over many. The probabilities of the known
runs would not do: a run that has drifted on is all the more surely taken for the last known one.

For lumisections of a known run, a score of s or more has probability exp(-s) at most, if the densities are right (an e-value:
Vovk and Wang, Ann. Stat. 49 (2021) 1736). Where they are not, scores are larger. The p-value of a score is therefore its place
among those of held-out lumisections of known runs (`monitoring.known_scores`), and this bound only while these are too few.

Changes of luminosity and calibration are ignored. Blank lumisections (`learners.blank`) add nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from dqmstream.errors import InputError
from dqmstream.learners.closed_form.statistical import Statistical
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.alarms import AlarmRates, Alarms
from dqmstream.learners.monitoring.drift import drift_variance
from dqmstream.learners.monitoring.evidence import KnownRows, Residuals, box_evidence, channel_evidence, pulls
from dqmstream.learners.monitoring.fault_filter import Suspicion
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.monitoring.held_out import held_out
from dqmstream.learners.monitoring.law_watch import LawWatch
from dqmstream.learners.monitoring.scatter import Scatter
from dqmstream.learners.monitoring.stretches import batches, window_sums
from dqmstream.learners.response.observation import Observation, observe
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.response.rings import MEDIAN_OF_SQUARE
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Past
from dqmstream.lumisection import Geometry

MEMORY_BYTES = 1_000_000
"""Budget of the statistical memory: 1002 runs; then similar runs share a row. A shared row is the mean of its runs, so each of
them looks a little new."""

_FAULTS, _SCATTER, _LAW = "faults", "scatter", "law"


@dataclass(frozen=True, eq=False)
class NewRunScores:
    """Scores of n lumisections of a run.

    score: log Bayes factor, higher for a newer run, float64, (n,). nearest: class of the nearest known run, int, (n,). length:
    lumisections in the window that are not blank, int, (n,). p: probability that a lumisection of a known run scores as high,
    by held-out lumisections of known runs; where these are too few, `bound`; (n,).
    """

    score: np.ndarray
    nearest: np.ndarray
    length: np.ndarray
    p: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        """The largest that this probability can be if the densities are right: min(1, exp(-score)), (n,)."""
        return np.exp(-np.maximum(self.score, 0.0))


@dataclass(frozen=True, eq=False)
class RunDeviation:
    """All lumisections of a run together, compared with the nearest known run.

    nearest: its class. pull: standardised change of each channel's counts. expected, seen: mean counts a lumisection. float64,
    (live,).
    """

    nearest: int
    pull: np.ndarray
    expected: np.ndarray
    seen: np.ndarray


class Novelty:
    """Learns every run, and scores how unlike all known runs a lumisection is."""

    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.statistical = Statistical(geometry, seed, MEMORY_BYTES)
        self.alarms = AlarmRates()
        self._faults: FaultScore | None = None
        self._scatter: Scatter | None = None
        self._law: LawWatch | None = None
        self._cached: KnownRows | None = None

    @property
    def classes(self) -> int:
        """Number of runs learnt."""
        return self.statistical.classes

    @property
    def live(self) -> np.ndarray:
        """The channels that are compared: bool, (depth, 64, 72)."""
        return self.statistical.reference.live

    @property
    def faults(self) -> FaultScore:
        """The fault score, which follows the gains from run to run. Raises InputError before the first run."""
        if self._faults is None:
            raise InputError("no run is known yet: learn one before asking for faults")
        return self._faults

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted to the first run; call it before the first `learn` or `restore`."""
        self.statistical.set_reference(reference)

    def learn(self, experience: int, run: RunData, past: Past) -> None:
        """Learn the next run; arguments as in `Strategy.learn`."""
        self.statistical.learn(experience, run, past)
        self._faults = self._faults or FaultScore(self.statistical.reference)
        self._scatter = self._scatter or Scatter(self.statistical.reference.ring)
        self._faults.set_reference(self.statistical.reference)
        self._faults.learn(run.part(Part.TRAIN))
        self._cached = None
        stretches = held_out(run, self.statistical.reference)
        self._scatter.learn(self._known, self._own_residuals, run.part(Part.TRAIN), stretches)
        self._cached = None
        row = self._known.row[-1]
        self._law = self._law or LawWatch(self.statistical.reference)
        self._law.learn(run.run, stretches, self.statistical.reference, self._known.gains[row], self._known.variances[row])
        self.alarms.add(
            experience,
            [(found.score, found.length) for found in self.score_each(stretches)],
            [(self.fault_score(maps, experience).score, np.arange(1, len(maps) + 1)) for maps in stretches],
        )

    def _own_residuals(self, known: KnownRows, maps: Maps) -> Residuals:
        counts = maps.counts[:, self.live].astype(np.float64)
        reference = self.statistical.reference
        observed, blank = observe(reference, counts), reference.blank(counts)
        return Residuals.of(known, np.full(len(counts), known.row[-1]), observed, reference.ring, blank)

    def fault_score(self, maps: Maps, experience: int | None = None) -> Suspicion:
        """The fault score of the lumisections of a run (`FaultScore.score`). experience: its number if the run is known."""
        if experience is None:
            return self.faults.score(maps)
        row = self._known.row[experience]
        return self.faults.score(maps, self.classes - experience, (self._known.gains[row], self._known.errors[row]))

    def new_run_alarms(self, scores: NewRunScores, rate: float) -> Alarms:
        """Alarms of the new-run score at this rate of false alarms."""
        return self.alarms.of_new_run(scores.score, scores.length, scores.bound, rate)

    def fault_alarms(self, score: np.ndarray, blank: np.ndarray, rate: float) -> Alarms:
        """Alarms of the fault score at this rate. score: of the lumisections of a run from its first, blank: bool, (n,)."""
        return self.alarms.of_fault(score, np.cumsum(~blank), expit(-score), rate, self._law is not None and self._law.holds)

    def alarms_summary(self) -> dict[str, Any]:
        """How the alarms are calibrated (`AlarmRates.summary`)."""
        return self.alarms.summary(self._law is not None and self._law.holds)

    def law_summary(self) -> dict[str, Any] | None:
        """Where the law of the response is off (`LawWatch.summary`); None before the first run."""
        return self._law.summary() if self._law else None

    def reference_summary(self) -> dict[str, Any] | None:
        """Kind and fitted range of the reference (`Reference.summary`); None before the first run."""
        return self.statistical.reference.summary() if self.classes else None

    def beyond(self, maps: Maps) -> np.ndarray | None:
        """Whether lumisections lie outside the fitted range of the reference: bool, (n,); None before the first run."""
        return self.statistical.reference.beyond(maps.counts) if self.classes else None

    def score(self, maps: Maps) -> NewRunScores:
        """Score the lumisections of one run, in their order. Raises InputError before the first run.

        A score depends on its own lumisection and up to 29 before it, never on a later one.
        """
        return self.score_each([maps])[0]

    def score_each(self, several: Sequence[Maps]) -> list[NewRunScores]:
        """The same for several runs, each by itself; faster than one call a run."""
        if not self.classes:
            raise InputError("no run is known yet: learn one before asking whether another is new")
        scores = [
            NewRunScores(*(np.empty(len(maps), dtype=kind) for kind in (np.float64, np.int64, np.int64, np.float64)))
            for maps in several
        ]
        for stretches in batches([len(maps) for maps in several]):
            counts = [several[one.run].counts[one.begin : one.stop][:, self.live] for one in stretches]
            scored = self._scored(np.concatenate(counts).astype(np.float64), [len(one) for one in stretches])
            for one, of_stretch in zip(stretches, scored, strict=True):
                found = scores[one.run]
                for whole, part in zip((found.score, found.nearest, found.length), of_stretch, strict=True):
                    whole[one.start : one.stop] = part[one.start - one.begin :]
        for found in scores:
            found.p[:] = self.alarms.of_new_run(found.score, found.length, found.bound).p
        return scores

    def _scored(self, counts: np.ndarray, sizes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Score, nearest class and length of the window of each lumisection, stretch by stretch.

        counts: (n, live). sizes: of the stretches.
        """
        reference = self.statistical.reference
        observed = observe(reference, counts)
        blank = reference.blank(counts)
        of_class, ends = self._log_densities(observed), np.cumsum(sizes)
        of_class[blank] = 0.0
        near = window_sums(of_class, ends).argmax(axis=1)
        length = window_sums((~blank[:, None]).astype(np.int64), ends)[:, 0]
        rows = self._known.row[near]
        # A block holds all lumisections of a stretch under one of the rows that are nearest to some of them.
        runs = [(np.arange(end - size, end), np.unique(rows[end - size : end])) for size, end in zip(sizes, ends, strict=True)]
        blocks = [(places, row) for places, nearest in runs for row in nearest]
        place = np.concatenate([places for places, _ in blocks])
        under = np.repeat([row for _, row in blocks], [len(places) for places, _ in blocks])
        residuals = Residuals.of(self._known, under, observed.rows(place), reference.ring, blank[place])
        block_ends = np.cumsum([len(places) for places, _ in blocks])
        found = channel_evidence(self._known, residuals, block_ends)
        found += box_evidence(self._known, residuals, block_ends, self.statistical.boxes)
        score = np.empty(len(counts))
        own = under == rows[place]
        score[place[own]] = found[own]
        for size, end in zip(sizes, ends, strict=True):
            yield score[end - size : end], near[end - size : end], length[end - size : end]

    def _log_densities(self, observed: Observation) -> np.ndarray:
        """Log-density of lumisections in each class, with the scatter of channels that stand out in it: (n, classes)."""
        if self._scatter is None or not self._scatter.any_odd:
            return self.statistical.scores_of(observed)
        return self._scatter.log_densities(observed, self.statistical.boxes, self._known)

    def deviation(self, maps: Maps) -> RunDeviation:
        """Compare all lumisections of a run together with the known run nearest to them.

        Where the middle of the pulls spreads by more than 1, they are divided by this spread (an empirical null: Efron, J. Am.
        Stat. Assoc. 99 (2004) 96), so a change common to all channels does not make single channels stand out.
        """
        reference = self.statistical.reference
        counts = maps.counts[:, self.live].astype(np.float64)
        blank = reference.blank(counts)
        counts = counts if blank.all() else counts[~blank]
        observed = observe(reference, counts)
        near = int(self._log_densities(observed).sum(axis=0).argmax())
        row = np.full(len(counts), self._known.row[near])
        residuals = Residuals.of(self._known, row, observed, reference.ring, np.full(len(counts), blank.all()))
        pull = pulls(self._known, residuals.row[0], *residuals.sums(lambda values: values.sum(axis=0)))
        pull = pull / max(1.0, float(np.sqrt(np.median(pull**2) / MEDIAN_OF_SQUARE)))
        return RunDeviation(near, pull, residuals.expected.mean(axis=0), counts.mean(axis=0))

    @property
    def _known(self) -> KnownRows:
        if self._cached is None:
            gains, errors, variances, row = self.statistical.known()
            reference = self.statistical.reference
            uncertain = errors if reference.rates_uncertain else np.zeros_like(errors)
            drift = drift_variance(gains, errors, reference.ring)
            spread = self._scatter.spread(row) if self._scatter else np.ones_like(gains)
            self._cached = KnownRows(gains, errors, uncertain, variances, row, drift, spread)
        return self._cached

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays."""
        state = self.statistical.state()
        parts = {_FAULTS: self._faults, _SCATTER: self._scatter, _LAW: self._law}
        for name, part in parts.items():
            state |= prefixed(name, part.state()) if part else {}
        state |= self.alarms.state() if self.classes else {}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it is damaged or of another detector."""
        self.statistical.restore(state)
        self._faults = FaultScore(self.statistical.reference) if self.classes else None
        self._scatter = Scatter(self.statistical.reference.ring) if self.classes else None
        self._law = LawWatch(self.statistical.reference) if self.classes else None
        for name, part in ((_FAULTS, self._faults), (_SCATTER, self._scatter), (_LAW, self._law)):
            if part:
                part.restore(within(state, name))
        self.alarms = AlarmRates()
        self.alarms.restore(state)
        self._cached = None

    @staticmethod
    def holds_all(state: Mapping[str, np.ndarray]) -> bool:
        """Whether a state is complete: not empty, and of a version that has the fault score."""
        return bool(within(state, _FAULTS))
