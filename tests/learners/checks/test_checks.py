"""The checks find each way in which a strategy can break the protocol, and say which; a sound strategy passes."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from dqmstream.errors import StateError
from dqmstream.learners.checks import check_strategy, strategy
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.lumisection import Geometry


def test_the_example_of_the_documentation_passes() -> None:
    failed, tried = doctest.testmod(strategy)
    assert tried > 4 and not failed


def test_a_strategy_that_has_learnt_nothing_is_checked_as_well_as_what_makes_one() -> None:
    check_strategy(GainMap(Geometry(1), 0))


def test_they_need_no_test_framework() -> None:
    code = "import sys, dqmstream.learners.checks; assert not {'pytest', 'torch', 'avalanche'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


class DependsOnNeighbours(GainMap):
    def scores(self, maps: Maps) -> np.ndarray:
        scores = super().scores(maps)
        return scores - scores.mean(axis=0)


class Single(GainMap):
    def scores(self, maps: Maps) -> np.ndarray:
        return super().scores(maps).astype(np.float32)


class NotFinite(GainMap):
    def scores(self, maps: Maps) -> np.ndarray:
        return np.where(maps.lumisection[:, None] == 160, np.nan, super().scores(maps))


class Hoards(GainMap):
    """Keeps every count of past runs and does not say so."""

    kept: tuple[np.ndarray, ...] = ()

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        log = super().learn(experience, run, past, watch)
        self.kept = (*self.kept, run.maps.counts[:, self.reference.live])
        return log

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {f"kept.{i}": counts for i, counts in enumerate(self.kept)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        self.kept = tuple(state[f"kept.{i}"] for i in range(self.classes)) if self._complete(state) else ()

    def _complete(self, state: Mapping[str, np.ndarray]) -> bool:
        missing = [i for i in range(self.classes) if f"kept.{i}" not in state]
        if missing:
            raise StateError("a run is missing")
        return True


class RemembersAfterRestore(GainMap):
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        before = dict(self._rows)
        super().restore(state)
        self._rows = self._rows or before


class AcceptsDamage(GainMap):
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore({name: array for name, array in state.items() if name != "extra"})

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {"extra": np.zeros(3)}


class Random(GainMap):
    def _summarise(self, train: Maps) -> tuple[np.ndarray, ...]:
        gains, errors = super()._summarise(train)
        return gains + np.float32(1e-3 * np.random.random()), errors


class ReadsAhead(GainMap):
    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        past(experience)
        return super().learn(experience, run, past, watch)


class AnyOrder(GainMap):
    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        return super().learn(min(experience, self.classes), run, past, watch)


class WatchedToTheEnd(GainMap):
    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        log = super().learn(experience, run, past)
        if watch is not None:
            watch()
        return log


class Free(GainMap):
    channel_flops = 0

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        log = super().learn(experience, run, past)
        log.flops = 0.0
        return log


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (DependsOnNeighbours, "depend on the ones beside it"),
        (Single, "scores are float32, not float64"),
        (NotFinite, "some scores are not finite"),
        (Hoards, "it must count all that is kept of past data"),
        (RemembersAfterRestore, "restored from the state after 1 run.* to that after 0, classes is 1"),
        (AcceptsDamage, "restore must refuse a state without its array 'extra', with StateError"),
        (Random, "states differ in gains|gives another log"),
        (ReadsAhead, "only earlier runs may be read"),
        (AnyOrder, "must refuse an experience that is not the next one, with ValueError"),
        (WatchedToTheEnd, "a watch was called 1 times in 0 steps, not 0 times"),
        (Free, "flops = 0.0"),
    ],
)
def test_what_breaks_the_protocol_is_found_and_named(made: Callable[[Geometry, int], GainMap], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_strategy(lambda seed: made(Geometry(1), seed))


def test_a_memory_beyond_the_budget_is_found() -> None:
    with pytest.raises(AssertionError, match="more than the budget of 8000"):
        check_strategy(lambda seed: GainMap(Geometry(1), seed), memory_bytes=8000)
