"""What all strategies share: runs come one after another, and the first one gives the reference if none was given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry


class Incremental(ABC):
    """A `Strategy` but for what it learns; see `dqmstream.learners.strategy.Strategy`."""

    name: str
    _reference: Reference | None = None
    _given: Reference | None = None

    def __init__(self, geometry: Geometry, seed: int, **more: Any) -> None:
        """What a state belongs to: a strategy of this name, geometry and seed, and what more its numbers depend on."""
        self._belongs_to: dict[str, Any] = {"strategy": self.name, "depths": geometry.depths, "seed": seed, **more}

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of experiences learnt so far."""

    @property
    def reference(self) -> Reference:
        """The reference that was given, or that the first run gave. Raises InputError before the first run."""
        if self._reference is None:
            raise InputError(f"{self.name} has learnt no run yet")
        return self._reference

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted on the first run; call it before the first `learn` or `restore`."""
        self._given = reference
        self._belongs_to["reference"] = reference.version

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        """Learn the next experience, as `Strategy` defines it. Raises ValueError if it is not the next."""
        if experience != self.classes:
            raise ValueError(f"experience {experience} cannot follow {self.classes} learnt ones")
        train = run.part(Part.TRAIN)
        flops = 0.0
        if self._reference is None:
            self._reference = self._given or Reference.fit(train)
            flops = 0.0 if self._given else self._reference.fit_flops(len(train))
        elif self._given is None:
            self._refer_to(self._reference.after(train))
        log = self._learn(experience, train, run.part(Part.VALIDATION), past, watch)
        log.flops += flops
        return log

    def learn_inside(self, reference: Reference, experience: int, train: Maps, validation: Maps, past: Past) -> LearnLog:
        """Learn as a part of another strategy, by whose reference both of them look."""
        self._refer_to(reference)
        return self._learn(experience, train, validation, past, None)

    def _refer_to(self, reference: Reference) -> None:
        """Look through this reference from now on: the first, or the one before after another run has taught it."""
        self._reference = reference

    def scores(self, maps: Maps) -> np.ndarray:
        """Log-scores as `Strategy` defines them: 0 for every run where a lumisection is blank."""
        scores = self._scores(maps)
        scores[self.reference.blank(maps.counts[:, self.reference.live])] = 0.0
        return scores

    @abstractmethod
    def _scores(self, maps: Maps) -> np.ndarray:
        """Log-scores float64, (n, classes), of which those of blank lumisections mean nothing."""

    @abstractmethod
    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        """Learn the train part of the next experience; the reference is there. validation: to choose by, never to fit."""

    def _reference_bytes(self) -> int:
        return 0 if self._reference is None else sum(array.nbytes for array in self._reference.state().values())

    def _reference_state(self) -> dict[str, np.ndarray]:
        return {} if self._reference is None else prefixed("reference", self._reference.state())

    def _restore_reference(self, state: Mapping[str, np.ndarray], known: bool) -> None:
        """Take the reference back from a whole state; known: whether a run was learnt. Raises StateError if it is damaged."""
        self._reference = Reference.from_state(within(state, "reference")) if known else None
