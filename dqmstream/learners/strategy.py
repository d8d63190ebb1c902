"""The protocol of a strategy: it learns runs one after another, and scores lumisections against the runs it knows.

Networks trained by gradients and closed forms (gain map, naive Bayes, ...) meet the same protocol. The learner, the evaluator
and checkpoints use nothing else of a strategy, and `learners.checks` tests it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference

Past = Callable[[int], RunData]
"""past(i) reads experience i, one before the current, again from the archive. Only upper bounds such as `joint` may call it."""


Watch = Callable[[], None]
"""Called during a training, when `scores` may be called (for the accuracy at any time)."""


@dataclass
class LearnLog:
    """What learning one experience cost.

    loss: training loss of each gradient step, empty where there are none. samples: lumisections processed, each as often as it
    was. flops: floating-point operations; an addition and a multiplication count as two. notes: figures of the strategy's own,
    for the history.
    """

    loss: list[float] = field(default_factory=list)
    samples: int = 0
    flops: float = 0.0
    notes: dict[str, float | list[float]] = field(default_factory=dict)


class Strategy(Protocol):
    """Learns runs that arrive one at a time, without knowing how many will come.

    Experience i is class i, column i of the scores. `learn` is a function of the state before it, the strategy's seed, and the
    experience's number and data alone, so a resumed stream gives the same bits as an unbroken one. The reference and all
    statistics are fitted to the train part; validation may decide when to stop; test is never used. Validation and test may be
    empty.

    `restore` also works on an object that has learnt more since: a run that has grown is learnt again from the state before it
    (`learners.stream.windows`).
    """

    name: str

    @property
    def classes(self) -> int:
        """Number of experiences learnt."""
        ...

    def set_reference(self, reference: Reference) -> None:
        """Use this reference instead of one fitted to the first run; call it before the first `learn` or `restore`."""
        ...

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        """Learn experience number `experience`: 0, 1, 2, ... without a hole; ValueError otherwise.

        watch: called by strategies that train by gradient steps after every 10th step (`WATCH_STEPS` in `gradient.trainer`)
        except the last; `scores` then answers for the current weights, with the new run as a class. It does not change a bit
        of what is learnt. Closed forms never call it.
        """
        ...

    def scores(self, maps: Maps) -> np.ndarray:
        """Log-scores, float64, (n, classes): the softmax of a row gives the probability of each known run.

        A row does not depend on the rows beside it. Scores of a blank lumisection (`learners.blank`) are all equal. Raises
        InputError before the first run.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later calls of `learn` and `scores` depend on, as named arrays."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Return to a state that `state` gave. Raises StateError if it belongs to another model or is damaged."""
        ...

    def memory_bytes(self) -> int:
        """Bytes kept of past data (exemplars, mean maps); the budget limits them."""
        ...

    def state_bytes(self) -> int:
        """Bytes of all else that grows with the runs or copies the model (Fisher information, teachers); shown, not limited."""
        ...
