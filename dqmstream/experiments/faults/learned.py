"""Detectors built from parts of the learner: its new-run score, its fault score, an autoencoder, and DepthViT."""

from __future__ import annotations

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.faults.cost import Cost
from dqmstream.experiments.faults.residuals import Standardised
from dqmstream.learners.gradient.flops import forward_flops
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.autoencoder import Autoencoder
from dqmstream.learners.monitoring.depthvit import DepthViTDetector, Training, scaled_by_quartiles
from dqmstream.learners.monitoring.fault_filter import Suspicion
from dqmstream.learners.monitoring.fault_score import FaultScore
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.lumisection import Geometry

NORMAL_ERROR = 0.6
"""Standard deviation of |x| for a normal x: that of a residual that varies by counting alone. A channel that counts in every
event of a run varies less there than in others."""


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

    def cost(self) -> Cost:
        return Cost.of_arrays(list(self._novelty.state().values()))


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

    def cost(self) -> Cost:
        return Cost.of_arrays([*self._known.reference.state().values(), *self._known.state().values()])


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

    def cost(self) -> Cost:
        if self._autoencoder is None or self._reference is None:
            raise InputError("no run was learnt yet: learn one before asking for the cost")
        flops = self._reference.response_flops(1) + forward_flops(self._autoencoder.network, self._reference.channels)
        beside = Cost.of_arrays([*self._reference.state().values(), *self._standardised.kept])
        weights = sum(weight.numel() for weight in self._autoencoder.network.parameters())
        return Cost(beside.numbers + weights, beside.kept_bytes + self._autoencoder.kept_bytes, flops)


class MaskedReconstruction:
    """DepthViT on counts scaled by their quartiles, or on residuals to the reference of the first run.

    The channels are those that count in the first run. own_statistics: of `DepthViTDetector.scores`; a score then depends on
    later lumisections of its run.
    """

    def __init__(self, seed: int, training: Training, residuals: bool, own_statistics: bool = False) -> None:
        self._seed, self._training, self._residuals, self._own_statistics = seed, training, residuals, own_statistics
        self._detector: DepthViTDetector | None = None
        self._reference: Reference | None = None

    @property
    def live(self) -> np.ndarray:
        return self._known.live

    @property
    def _known(self) -> DepthViTDetector:
        if self._detector is None:
            raise InputError("no run was learnt yet: learn one before scoring")
        return self._detector

    def learn(self, good: Maps) -> None:
        if self._detector is None:
            self._reference = Reference.fit(good) if self._residuals else None
            live = self._reference.live if self._reference else np.asarray((good.counts > 0).any(axis=0))
            least = {"least_deviation": NORMAL_ERROR} if self._residuals else {}
            self._detector = DepthViTDetector(live, self._training, self._seed, **least)
        self._detector.learn(self._values(good))

    def look(self, maps: Maps) -> Suspicion:
        channels = self._known.scores(self._values(maps), self._own_statistics)
        return Suspicion(channels.max(axis=1), channels)

    def _values(self, maps: Maps) -> np.ndarray:
        of_live = maps.counts[:, self._known.live]
        return self._reference.residuals_of_live(of_live) if self._reference else scaled_by_quartiles(of_live)

    def cost(self) -> Cost:
        channels = int(self.live.sum())
        beside = Cost.of_arrays(list(self._reference.state().values()) if self._reference else [])
        flops = self._reference.response_flops(1) if self._reference else 0.0
        flops += sum(forward_flops(model, channels) for model in self._known.models)
        return Cost(beside.numbers + self._known.numbers, beside.kept_bytes + self._known.kept_bytes, flops)


def _no_past(experience: int) -> RunData:
    raise InputError(f"experience {experience} cannot be read again: a detector keeps no runs")
