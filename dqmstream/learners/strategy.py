"""What a strategy is: something that learns runs one after another and scores lumisections against the runs it knows.

Deep learners (Avalanche templates) and streaming classifiers (gain maps, naive Bayes, ring means) meet the same protocol,
so the learner, the evaluator, checkpoints and conformance checks know only this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference

Past = Callable[[int], RunData]
"""past(i) reads experience i (before the one being learnt) again from the archive. Only bounds such as joint may ask."""


Watch = Callable[[], None]
"""Called in the middle of a training, at moments at which `scores` may be asked (for the accuracy at any time)."""


@dataclass
class LearnLog:
    """What learning one experience cost and how it went.

    loss: one training loss per step, empty where nothing is trained. samples: lumisections looked at, each as often as it
    was. flops: floating-point operations spent on them, an addition and a multiplication being two.
    """

    loss: list[float] = field(default_factory=list)
    samples: int = 0
    flops: float = 0.0
    notes: dict[str, float | list[float]] = field(default_factory=dict)


class Strategy(Protocol):
    """A learner of runs that arrive one at a time, their number unknown in advance.

    Experience i is class i, the i-th column of the scores. Everything that `learn` does is a function of the state before
    it, the strategy's seed, the experience's number and its data; so a resumed stream gives the bits of an unbroken one.
    Reference maps and statistics are fitted on the train part alone; validation may choose when to stop; test is never seen.
    An object that has learnt on takes back an earlier state of its own as well: so a run that goes on is learnt once more in
    place of its beginning (`learners.stream.windows`). Validation and test are empty while a run has none.
    """

    name: str

    @property
    def classes(self) -> int:
        """Number of experiences learnt so far."""
        ...

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted on the first run; call it before the first `learn` or `restore`."""
        ...

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        """Learn experience number `experience` (0, 1, 2, ... without a hole). The first only sets the reference,
        where none was given.

        watch: what trains by gradient steps calls it every `WATCH_STEPS` of them (10, in `gradient.trainer`) but not
        after the last. The run is then a class already, and `scores` answers for the weights as they are. What is learnt
        has the same bits with and without a watch. What learns in one piece never calls it.
        """
        ...

    def scores(self, maps: Maps) -> np.ndarray:
        """Log-scores float64, shape (n, classes): a softmax over the columns gives the probability of each known run.

        A row never depends on the rows beside it. All columns are equal where the lumisection is blank (`learners.blank`).
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All that the next `learn` and `scores` depend on, as named arrays."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is of another model."""
        ...

    def memory_bytes(self) -> int:
        """Bytes kept of past data (exemplars, mean maps): capped by the budget."""
        ...

    def state_bytes(self) -> int:
        """Bytes of everything else that grows or doubles the model (Fisher, teachers): shown, not capped."""
        ...
