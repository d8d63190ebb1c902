"""What all strategies share: the order of the runs, and the reference, which is fitted to the first run unless it is given."""

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
    """Base of the strategies (`learners.strategy.Strategy`): all but what is learnt of a run, and how it scores."""

    name: str
    _reference: Reference | None = None
    _given: Reference | None = None

    def __init__(self, geometry: Geometry, seed: int, **more: Any) -> None:
        """more: other settings that a saved state depends on; a state with other values is refused."""
        self._belongs_to: dict[str, Any] = {"strategy": self.name, "depths": geometry.depths, "seed": seed, **more}

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of experiences learnt."""

    @property
    def reference(self) -> Reference:
        """The reference, given or fitted to the first run. Raises InputError before the first run."""
        if self._reference is None:
            raise InputError(f"{self.name} has learnt no run yet")
        return self._reference

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted on the first run; call it before the first `learn` or `restore`."""
        self._given = reference
        self._belongs_to["reference"] = reference.version

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        """Learn the next experience (`Strategy.learn`). Raises ValueError if it is not the next."""
        if experience != self.classes:
            raise ValueError(f"experience {experience} cannot follow {self.classes} learnt ones")
        train = run.part(Part.TRAIN)
        flops = 0.0
        if self._reference is None:
            self._reference = self._given or Reference.fit(train)
            flops = 0.0 if self._given else self._reference.fit_flops(len(train))
        elif self._given is None:
            self._use_reference(self._reference.updated_by(train))
        log = self._learn(experience, train, run.part(Part.VALIDATION), past, watch)
        log.flops += flops
        return log

    def learn_inside(self, reference: Reference, experience: int, train: Maps, validation: Maps, past: Past) -> LearnLog:
        """Learn as a part of another strategy, with its reference."""
        self._use_reference(reference)
        return self._learn(experience, train, validation, past, None)

    def _use_reference(self, reference: Reference) -> None:
        """Use this reference from now on: the first one, or the present one improved by another run."""
        self._reference = reference

    def scores(self, maps: Maps) -> np.ndarray:
        """Log-scores (`Strategy.scores`); 0 for every run where a lumisection is blank."""
        scores = self._scores(maps)
        scores[self.reference.blank(maps.counts[:, self.reference.live])] = 0.0
        return scores

    def scores_inside(self, maps: Maps) -> np.ndarray:
        """Log-scores as a part of another strategy, which knows blank lumisections."""
        return self._scores(maps)

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything, as named arrays (`Strategy.state`)."""

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave (`Strategy.restore`)."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes kept of past data."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of all else that grows with the runs or copies the model."""

    @abstractmethod
    def _scores(self, maps: Maps) -> np.ndarray:
        """Log-scores, float64, (n, classes); those of blank lumisections are not used."""

    @abstractmethod
    def _learn(self, experience: int, train: Maps, validation: Maps, past: Past, watch: Watch | None) -> LearnLog:
        """Learn the next experience from its train part; `reference` is set. validation: may only decide when to stop."""

    def _reference_bytes(self) -> int:
        return 0 if self._reference is None else sum(array.nbytes for array in self._reference.state().values())

    def _reference_state(self) -> dict[str, np.ndarray]:
        return {} if self._reference is None else prefixed("reference", self._reference.state())

    def _restore_reference(self, state: Mapping[str, np.ndarray], known: bool) -> None:
        """Restore the reference from a strategy's state. known: whether a run was learnt. Raises StateError if damaged."""
        self._reference = Reference.from_state(within(state, "reference")) if known else None
