"""The protocol of a fault detector, and the detectors of the benchmark by name.

A detector scores each run before it learns it, and then learns the run's good lumisections, which are known when a run has been
certified. Its scores may have any scale: thresholds come from its own scores of past good data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.faults.autodqm import BetaBinomial
from dqmstream.experiments.faults.cost import Cost
from dqmstream.experiments.faults.learned import FaultFlags, MaskedReconstruction, NewRun, Reconstruction
from dqmstream.experiments.faults.oracle import Oracle
from dqmstream.experiments.faults.residuals import ZScore
from dqmstream.learners.maps import Maps
from dqmstream.learners.monitoring.depthvit import Training
from dqmstream.learners.monitoring.fault_filter import Suspicion


class Detector(Protocol):
    """Learns the good lumisections of one run after another and scores the lumisections of others."""

    @property
    def live(self) -> np.ndarray:
        """bool, (depth, 64, 72): the channels of `Suspicion.channels`. Raises InputError before the first run."""
        ...

    def learn(self, good: Maps) -> None:
        """Learn the good lumisections of the next run."""
        ...

    def look(self, maps: Maps) -> Suspicion:
        """Scores of a run's lumisections, in their order, and of their channels; larger means more likely faulty.

        A score depends on its own lumisection and earlier ones only. Nothing is learnt.
        """
        ...

    def cost(self) -> Cost:
        """What it keeps now, and operations to score a lumisection. Raises InputError before the first run."""
        ...


NEWEST, ENSEMBLE = Training(), Training(models=4)
PUBLISHED = Training(first_epochs=100, epochs=100, models=4)
"""DepthViT in the size of the public code; the first two with fewer epochs than its 100, which take an hour for 40 runs."""


DETECTORS: dict[str, Callable[[int], Detector]] = {
    "z-score": lambda seed: ZScore(follows=False),
    "z-score, followed": lambda seed: ZScore(follows=True),
    "AutoDQM": lambda seed: BetaBinomial(),
    "autoencoder": lambda seed: Reconstruction(seed, replay=False),
    "autoencoder, replay": lambda seed: Reconstruction(seed, replay=True),
    "DepthViT": lambda seed: MaskedReconstruction(seed, NEWEST, residuals=False),
    "DepthViT, ensemble": lambda seed: MaskedReconstruction(seed, ENSEMBLE, residuals=False),
    "DepthViT, residuals": lambda seed: MaskedReconstruction(seed, ENSEMBLE, residuals=True),
    "new-run score": lambda seed: NewRun(seed),
    "fault score": lambda seed: FaultFlags(),
}
"""Name -> a new detector with this seed. The last is the learner's own, whose scores `dqmstream flags` prints."""

ON_REQUEST: dict[str, Callable[[int], Detector]] = {
    "DepthViT, own statistics": lambda seed: MaskedReconstruction(seed, ENSEMBLE, residuals=False, own_statistics=True),
    "DepthViT, 100 epochs": lambda seed: MaskedReconstruction(seed, PUBLISHED, residuals=False),
}
"""Detectors that are computed only where they are named: one whose scores use later lumisections of the same run, as the
public evaluation script of DepthViT does, and one that takes long."""

NAMES = (*DETECTORS, Oracle.name)


def make_detector(name: str, seed: int) -> Detector | Oracle:
    """A new detector. Raises InputError for an unknown name."""
    if name == Oracle.name:
        return Oracle()
    made = (DETECTORS | ON_REQUEST).get(name)
    if made is None:
        raise InputError(f"there is no detector {name!r}: choose one of {', '.join((*NAMES, *ON_REQUEST))}")
    return made(seed)
