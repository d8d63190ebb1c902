"""What every strategy must keep, whatever it learns by; a new strategy is checked by adding its name to a list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Strategy
from tests.learners.streams import make_stream, reader

WATCH_STEPS = 10
"""Of the protocol: what trains by steps is watched after each tenth but the last."""

MakeStrategy = Callable[[int], Strategy]
"""A new strategy from a seed."""


def check_strategy(make: MakeStrategy, memory_bytes: int | None) -> None:
    """Run every check on a stream of four runs. memory_bytes: the budget, None where it does not apply."""
    stream = make_stream(4, drift=0.03, seed=1)
    strategy = make(0)
    met = check_growth(strategy, stream, memory_bytes)
    check_takes_back_any_state_of_its_own(strategy, make, met, stream)
    check_same_seed_same_bits(make, stream)
    check_resumes_to_the_same_bits(make, stream)
    check_a_watch_changes_nothing(make, stream)
    check_a_run_is_learnt_once_more(make, stream)


@dataclass(frozen=True, eq=False)
class Met:
    """A strategy between two runs: its state, its bytes, and the log of the learning that followed, None at the end."""

    state: dict[str, np.ndarray]
    memory_bytes: int
    state_bytes: int
    log: LearnLog | None

    @classmethod
    def of(cls, strategy: Strategy) -> Met:
        state = {name: array.copy() for name, array in strategy.state().items()}
        return cls(state, strategy.memory_bytes(), strategy.state_bytes(), None)


def check_growth(strategy: Strategy, stream: list[RunData], memory_bytes: int | None) -> list[Met]:
    """One more class a run, none known before; finite scores and losses; rows alone; memory within the budget.

    Returns what the strategy was before each run, and at the end.
    """
    assert strategy.classes == 0
    met = []
    for experience, run in enumerate(stream):
        before = Met.of(strategy)
        log = strategy.learn(experience, run, _only_before(stream, experience))
        met.append(replace(before, log=log))
        assert strategy.classes == experience + 1
        assert np.isfinite(log.loss).all()
        assert log.samples > 0
        assert log.flops > 0
        test = run.part(Part.TEST)
        scores = strategy.scores(test)
        assert scores.shape == (len(test), experience + 1)
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        check_rows_stand_alone(strategy, test, scores)
        if memory_bytes is not None:
            assert strategy.memory_bytes() <= memory_bytes
        assert strategy.state_bytes() >= 0
    return [*met, Met.of(strategy)]


def check_rows_stand_alone(strategy: Strategy, maps: Maps, scores: np.ndarray) -> None:
    """A lumisection's scores are the same alone, in another order, and beside a broken one."""
    alone = strategy.scores(maps.take(np.array([3])))
    np.testing.assert_allclose(alone, scores[3:4], rtol=1e-4, atol=1e-4)
    backwards = strategy.scores(maps.take(np.arange(len(maps))[::-1]))
    np.testing.assert_allclose(backwards[::-1], scores, rtol=1e-4, atol=1e-4)
    counts = maps.counts.copy()
    counts[0] = 0
    counts[1] *= 50
    beside_broken = strategy.scores(Maps(counts, maps.n_events, maps.pileup, maps.lumisection))
    assert np.isfinite(beside_broken).all()
    np.testing.assert_allclose(beside_broken[2:], scores[2:], rtol=1e-4, atol=1e-4)


def check_same_seed_same_bits(make: MakeStrategy, stream: list[RunData]) -> None:
    """Two strategies of one seed agree to the bit, whatever random numbers were drawn in between."""
    first, second = make(7), make(7)
    for experience, run in enumerate(stream[:3]):
        first.learn(experience, run, reader(stream))
        np.random.default_rng(experience).random(5)
        second.learn(experience, run, reader(stream))
    assert_same_state(first, second)


def check_resumes_to_the_same_bits(make: MakeStrategy, stream: list[RunData]) -> None:
    """Stopped after any run and taken up by a fresh object, the rest of the stream gives the bits of an unbroken one."""
    unbroken = make(3)
    for experience, run in enumerate(stream):
        resumed = make(3)
        resumed.restore({name: array.copy() for name, array in unbroken.state().items()})
        assert resumed.classes == experience
        assert_same_state(resumed, unbroken)
        unbroken.learn(experience, run, reader(stream))
        resumed.learn(experience, run, reader(stream))
        assert_same_state(resumed, unbroken)
        maps = run.part(Part.TEST)
        np.testing.assert_array_equal(resumed.scores(maps), unbroken.scores(maps))


def check_a_run_is_learnt_once_more(make: MakeStrategy, stream: list[RunData]) -> None:
    """A run of which the beginning was learnt, without validation, is taken back and learnt whole, as if for the first time."""
    straight, again = make(6), make(6)
    for experience, run in enumerate(stream[:2]):
        straight.learn(experience, run, reader(stream))
        again.learn(experience, run, reader(stream))
    before = {name: array.copy() for name, array in again.state().items()}
    run = stream[2]
    beginning = np.arange(40)
    again.learn(2, RunData(run.run, run.maps.take(beginning), run.parts[beginning]), reader(stream))
    assert again.scores(run.part(Part.TEST)).shape == (len(run.part(Part.TEST)), 3)
    again.restore(before)
    assert_same_state_as(again, before)
    for strategy in (straight, again):
        strategy.learn(2, run, reader(stream))
    assert_same_state(straight, again)
    np.testing.assert_array_equal(straight.scores(run.maps), again.scores(run.maps))


def check_takes_back_any_state_of_its_own(
    strategy: Strategy, make: MakeStrategy, met: list[Met], stream: list[RunData]
) -> None:
    """From each state to each other one, longer or shorter, the empty one too: nothing is left of where it was before.

    strategy: of seed 0, has learnt the stream. met: what it was before each run and at the end.
    """
    for after in met:
        resumed = make(0)
        resumed.restore(after.state)
        assert (resumed.memory_bytes(), resumed.state_bytes()) == (after.memory_bytes, after.state_bytes)
    for before, after in permutations([0, 1, 2, len(met) - 1], 2):
        strategy.restore(met[before].state)
        strategy.restore(met[after].state)
        assert strategy.classes == after
        assert_same_state_as(strategy, met[after].state)
        assert (strategy.memory_bytes(), strategy.state_bytes()) == (met[after].memory_bytes, met[after].state_bytes)
    for known in (0, 1):
        strategy.restore(met[-1].state)
        strategy.restore(met[known].state)
        if not known:
            with pytest.raises(InputError, match="has learnt no run"):
                strategy.scores(stream[0].maps)
        for experience in range(known, 2):
            assert strategy.learn(experience, stream[experience], reader(stream)) == met[experience].log
            assert_same_state_as(strategy, met[experience + 1].state)


def check_a_watch_changes_nothing(make: MakeStrategy, stream: list[RunData]) -> None:
    """Whoever asks for scores in the middle of a training gets them, rows alone as ever, and no bit of the training moves."""
    watched, alone = make(5), make(5)
    for experience, run in enumerate(stream[:3]):
        test = run.part(Part.TEST)
        seen: list[np.ndarray] = []

        def watch(test: Maps = test, seen: list[np.ndarray] = seen) -> None:
            seen.append(watched.scores(test))
            np.testing.assert_array_equal(watched.scores(test), seen[-1])
            check_rows_stand_alone(watched, test, seen[-1])
            draw_random_numbers()

        log = watched.learn(experience, run, reader(stream), watch)
        unwatched = alone.learn(experience, run, reader(stream))
        assert log == unwatched
        assert_same_state(watched, alone)
        assert len(seen) == max(0, len(log.loss) - 1) // WATCH_STEPS
        for scores in seen:
            assert scores.shape == (len(test), experience + 1)
            assert np.isfinite(scores).all()
        if seen:
            assert (watched.scores(test) != seen[-1]).any(), "what was seen was not the end of the training"


def draw_random_numbers() -> None:
    """Move the global random states, as code that is called in between might."""
    np.random.random(3)
    if "torch" in sys.modules:
        sys.modules["torch"].rand(3)


def assert_same_state(first: Strategy, second: Strategy) -> None:
    """Same names, dtypes, shapes and bits."""
    assert_same_state_as(first, second.state())


def assert_same_state_as(strategy: Strategy, b: Mapping[str, np.ndarray]) -> None:
    """The same of a state that was taken before."""
    a = strategy.state()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def accuracy(strategy: Strategy, stream: list[RunData]) -> float:
    """Mean accuracy over the runs' test parts after learning them all."""
    for experience, run in enumerate(stream):
        strategy.learn(experience, run, reader(stream))
    hits = [np.mean(strategy.scores(run.part(Part.TEST)).argmax(axis=1) == i) for i, run in enumerate(stream)]
    return float(np.mean(hits))


def _only_before(stream: list[RunData], experience: int) -> Callable[[int], RunData]:
    def past(i: int) -> RunData:
        assert i < experience, "past reaches only to earlier experiences"
        return stream[i]

    return past
