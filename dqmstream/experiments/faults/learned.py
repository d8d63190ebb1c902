"""Detectors built from parts of the learner: its new-run score, its fault score, and an autoencoder."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.faults.residuals import Standardised
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.autoencoder import Autoencoder
from dqmstream.learners.monitoring.fault_filter import Suspicion
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry


class NewRun:
    """The score of `learners.monitoring.novelty`; for channels, their pulls against the nearest known run."""

    def __init__(self, seed: int) -> None:
        self._novelty = Novelty(Geometry(1), seed)

    @property
    def live(self) -> np.ndarray:
        return self._novelty.live

    def learn(self, good: Maps) -> None:
        run = RunData(self._novelty.classes, good, np.full(len(good), Part.TRAIN))
        self._novelty.learn(self._novelty.classes, run, _no_past)

    def look(self, maps: Maps) -> Suspicion:
        alone = [self._novelty.deviation(maps.take(np.array([i]))).pull for i in range(len(maps))]
        return Suspicion(self._novelty.score(maps).score, np.abs(np.stack(alone)))


class FaultFlags:
    """The score of `learners.monitoring.fault_score`, with the good lumisections of the first run as reference."""

    def __init__(self) -> None:
        self._score: FaultScore | None = None

    @property
    def live(self) -> np.ndarray:
        return self._known.reference.live

    @property
    def _known(self) -> FaultScore:
        if self._score is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._score

    def learn(self, good: Maps) -> None:
        self._score = self._score or FaultScore(Reference.fit(good))
        self._score.learn(good)

    def look(self, maps: Maps) -> Suspicion:
        return self._known.score(maps)


class Reconstruction:
    """Residuals that an autoencoder cannot reconstruct, in standard deviations of each channel."""

    def __init__(self, seed: int, replay: bool) -> None:
        self._seed, self._replay = seed, replay
        self._autoencoder: Autoencoder | None = None
        self._reference: Reference | None = None
        self._standardised = Standardised(follows=True)

    @property
    def live(self) -> np.ndarray:
        if self._reference is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._reference.live

    def learn(self, good: Maps) -> None:
        if self._autoencoder is None:
            self._reference = Reference.fit(good)
            self._autoencoder = Autoencoder(self._reference, self._seed, self._replay)
        self._autoencoder.learn(good)
        self._standardised.learn(self._autoencoder.left_over(good))

    def look(self, maps: Maps) -> Suspicion:
        if self._autoencoder is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._standardised.suspicion(self._autoencoder.left_over(maps))


def _no_past(experience: int) -> RunData:
    raise InputError(f"experience {experience} cannot be read again: a detector keeps no runs")
