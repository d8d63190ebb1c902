"""What every strategy must do, whatever it learns by, tested on small synthetic runs (`checks.streams`).

Each check raises AssertionError with a sentence that says what the protocol (`learners.strategy.Strategy`) demands, and what
the strategy did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import permutations
from typing import cast

import numpy as np

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks.streams import make_stream, reader
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Strategy

WATCH_STEPS = 10
"""A watch is called after each 10th gradient step except the last."""

_TOLERANCE = 1e-4
"""Relative and absolute difference allowed between scores of the same lumisection beside other ones (float32)."""

MakeStrategy = Callable[[int], Strategy]
"""make(seed): a new strategy that has learnt nothing."""


def check_strategy(strategy: MakeStrategy | Strategy, memory_bytes: int | None = None) -> None:
    """Run all checks on a strategy, on four synthetic runs of 932 channels (HE depth 1).

    Parameters
    ----------
    strategy
        A function (or class) that makes a new strategy from a seed, or a strategy that has learnt nothing, which is copied.
    memory_bytes
        The strategy's budget of bytes for past data; None where it has none.

    Raises
    ------
    AssertionError
        If the strategy breaks the protocol; the message says how.

    Examples
    --------
    A strategy of one's own: the mean residual of each channel in each run, compared by squared distance.

    >>> import numpy as np
    >>> from dqmstream.learners.checks import check_strategy
    >>> from dqmstream.learners.closed_form.row_per_run import RowPerRun
    >>> from dqmstream.lumisection import Geometry
    >>> class MeanMap(RowPerRun):
    ...     name, arrays, channel_flops = "mean_map", ("means",), 1
    ...     def _summarise(self, train):
    ...         return (self.reference.residuals(train.counts).mean(axis=0),)
    ...     def _scores(self, maps):
    ...         residuals = self.reference.residuals(maps.counts).astype(np.float64)
    ...         return -0.5 * np.stack([((residuals - mean) ** 2).sum(axis=1) for mean in self._rows["means"]], axis=1)
    >>> check_strategy(lambda seed: MeanMap(Geometry(depths=1), seed))
    """
    make = _maker(strategy)
    stream = make_stream(4, drift=0.03, seed=1)
    learner = make(0)
    snapshots = check_learns_and_scores(learner, stream, memory_bytes)
    check_returns_to_its_states(learner, make, snapshots, stream)
    check_counts_its_memory(make, stream)
    check_same_seed_same_bits(make, stream)
    check_resumes_to_the_same_bits(make, stream)
    check_watch_changes_nothing(make, stream)
    check_learns_a_run_again(make, stream)


def _maker(strategy: MakeStrategy | Strategy) -> MakeStrategy:
    if isinstance(strategy, type) or not hasattr(strategy, "learn"):
        return cast(MakeStrategy, strategy)
    blank = cast(Strategy, strategy)
    return lambda seed: deepcopy(blank)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A strategy between two runs: its state, its bytes, and the log of the next `learn` (None after the last run)."""

    state: dict[str, np.ndarray]
    memory_bytes: int
    state_bytes: int
    log: LearnLog | None

    @classmethod
    def of(cls, strategy: Strategy) -> Snapshot:
        return cls(_copied(strategy.state()), strategy.memory_bytes(), strategy.state_bytes(), None)


def check_learns_and_scores(strategy: Strategy, stream: list[RunData], memory_bytes: int | None) -> list[Snapshot]:
    """Learn the runs one by one, and check classes, log, scores and memory after each.

    strategy: has learnt nothing. Returns a snapshot before each run, and one at the end.
    """
    _demand(strategy.classes == 0, f"a new strategy has 0 classes, not {strategy.classes}")
    with _raises(InputError, "scores must refuse before the first run", "has learnt no run"):
        strategy.scores(stream[0].maps)
    snapshots = []
    for experience, run in enumerate(stream):
        before = Snapshot.of(strategy)
        log = strategy.learn(experience, run, _only_before(stream, experience))
        snapshots.append(replace(before, log=log))
        after = f"after learning {experience + 1} run(s)"
        _demand(strategy.classes == experience + 1, f"{after}, classes is {strategy.classes}: it counts the runs learnt")
        _demand(bool(np.isfinite(log.loss).all()), f"{after}, the log has a loss that is not finite")
        _demand(log.samples > 0, f"{after}, the log has samples = {log.samples}: it counts the lumisections processed")
        _demand(log.flops > 0, f"{after}, the log has flops = {log.flops}: it counts floating-point operations")
        test = run.part(Part.TEST)
        scores = _checked_scores(strategy, test, experience + 1)
        check_rows_stand_alone(strategy, test, scores)
        if memory_bytes is not None:
            kept = strategy.memory_bytes()
            _demand(kept <= memory_bytes, f"{after}, memory_bytes() is {kept}: more than the budget of {memory_bytes}")
    with _raises(ValueError, "learn must refuse an experience that is not the next one"):
        strategy.learn(strategy.classes + 1, stream[0], reader(stream))
    return [*snapshots, Snapshot.of(strategy)]


def _checked_scores(strategy: Strategy, maps: Maps, classes: int) -> np.ndarray:
    scores = strategy.scores(maps)
    wanted = (len(maps), classes)
    _demand(scores.shape == wanted, f"scores have shape {scores.shape}; {wanted} is (lumisections, classes)")
    _demand(scores.dtype == np.float64, f"scores are {scores.dtype}, not float64")
    _demand(bool(np.isfinite(scores).all()), "some scores are not finite")
    return scores


def check_rows_stand_alone(strategy: Strategy, maps: Maps, scores: np.ndarray) -> None:
    """A lumisection's scores are the same alone, in another order, and beside an empty and an impossibly bright one."""
    demand = "the scores of a lumisection depend on the ones beside it"
    alone = strategy.scores(maps.take(np.array([3])))
    _demand_close(alone, scores[3:4], f"{demand}: they differ when it is scored alone")
    backwards = strategy.scores(maps.take(np.arange(len(maps))[::-1]))
    _demand_close(backwards[::-1], scores, f"{demand}: they differ in reverse order")
    counts = maps.counts.copy()
    counts[0] = 0
    counts[1] *= 50
    beside_broken = strategy.scores(Maps(counts, maps.n_events, maps.pileup, maps.lumisection))
    _demand(bool(np.isfinite(beside_broken).all()), "scores of an empty or a 50 times brighter lumisection are not finite")
    _demand_close(beside_broken[2:], scores[2:], f"{demand}: they differ beside an empty and a 50 times brighter one")


def check_counts_its_memory(make: MakeStrategy, stream: list[RunData]) -> None:
    """Whatever the state keeps more of because a run has more lumisections is counted by `memory_bytes`."""
    short, long = make(2), make(2)
    for experience, run in enumerate(stream[:2]):
        beginning = np.arange(50)
        long.learn(experience, run, reader(stream))
        short.learn(experience, RunData(run.run, run.maps.take(beginning), run.parts[beginning]), reader(stream))
    more = _nbytes(long.state()) - _nbytes(short.state())
    counted = long.memory_bytes()
    _demand(
        more <= counted,
        f"with more lumisections in the same runs the state grows by {more} bytes, but memory_bytes() is {counted}: it must "
        "count all that is kept of past data",
    )


def check_same_seed_same_bits(make: MakeStrategy, stream: list[RunData]) -> None:
    """Two strategies of one seed agree to the bit, whatever global random numbers are drawn in between."""
    first, second = make(7), make(7)
    for experience, run in enumerate(stream[:3]):
        first.learn(experience, run, reader(stream))
        np.random.default_rng(experience).random(5)
        _draw_random_numbers()
        second.learn(experience, run, reader(stream))
    assert_same_state(first, second, "two strategies of the same seed learnt the same runs")


def check_resumes_to_the_same_bits(make: MakeStrategy, stream: list[RunData]) -> None:
    """A new object restored from the state after any run goes on to the same bits as the object that was never stopped."""
    unbroken = make(3)
    for experience, run in enumerate(stream):
        resumed = make(3)
        resumed.restore(_copied(unbroken.state()))
        _demand(resumed.classes == experience, f"restored after {experience} run(s), classes is {resumed.classes}")
        assert_same_state(resumed, unbroken, f"a new object was restored after {experience} run(s)")
        unbroken.learn(experience, run, reader(stream))
        resumed.learn(experience, run, reader(stream))
        assert_same_state(resumed, unbroken, f"a new object was restored after {experience} run(s) and learnt the next")
        maps = run.part(Part.TEST)
        _demand_equal(resumed.scores(maps), unbroken.scores(maps), "scores after a restore differ from those without")


def check_learns_a_run_again(make: MakeStrategy, stream: list[RunData]) -> None:
    """A run learnt from its beginning, without validation, can be taken back by `restore` and learnt as a whole."""
    straight, again = make(6), make(6)
    for experience, run in enumerate(stream[:2]):
        straight.learn(experience, run, reader(stream))
        again.learn(experience, run, reader(stream))
    before = _copied(again.state())
    run = stream[2]
    beginning = np.arange(40)
    again.learn(2, RunData(run.run, run.maps.take(beginning), run.parts[beginning]), reader(stream))
    _checked_scores(again, run.part(Part.TEST), 3)
    again.restore(before)
    _demand_same_state(again.state(), before, "an object that had learnt a run more was restored")
    for strategy in (straight, again):
        strategy.learn(2, run, reader(stream))
    assert_same_state(straight, again, "a run was learnt again after a restore")
    _demand_equal(straight.scores(run.maps), again.scores(run.maps), "scores differ once a run was learnt again")


def check_returns_to_its_states(
    strategy: Strategy, make: MakeStrategy, snapshots: list[Snapshot], stream: list[RunData]
) -> None:
    """`restore` leads from any state to any other, longer, shorter or empty, and leaves nothing of the former.

    A state without one of its arrays is refused. strategy: of seed 0, has learnt the stream. snapshots: before each run and at
    the end.
    """
    for after in snapshots:
        resumed = make(0)
        resumed.restore(after.state)
        _demand_same_bytes(resumed, after)
    for missing in snapshots[2].state:
        with _raises(StateError, f"restore must refuse a state without its array {missing!r}"):
            make(0).restore({name: array for name, array in snapshots[2].state.items() if name != missing})
    for before, after_ in permutations([0, 1, 2, len(snapshots) - 1], 2):
        strategy.restore(snapshots[before].state)
        strategy.restore(snapshots[after_].state)
        said = f"restored from the state after {before} run(s) to that after {after_}"
        _demand(strategy.classes == after_, f"{said}, classes is {strategy.classes}")
        _demand_same_state(strategy.state(), snapshots[after_].state, said)
        _demand_same_bytes(strategy, snapshots[after_])
    for known in (0, 1):
        strategy.restore(snapshots[-1].state)
        strategy.restore(snapshots[known].state)
        if not known:
            with _raises(InputError, "scores must refuse before the first run", "has learnt no run"):
                strategy.scores(stream[0].maps)
        for experience in range(known, 2):
            log = strategy.learn(experience, stream[experience], reader(stream))
            _demand(log == snapshots[experience].log, f"after a restore, learning run {experience} gives another log")
            _demand_same_state(
                strategy.state(), snapshots[experience + 1].state, f"run {experience} was learnt after a restore"
            )


def check_watch_changes_nothing(make: MakeStrategy, stream: list[RunData]) -> None:
    """A watch is called after each 10th gradient step but the last, may ask for scores, and changes no bit of the training."""
    watched, alone = make(5), make(5)
    for experience, run in enumerate(stream[:3]):
        test = run.part(Part.TEST)
        seen: list[np.ndarray] = []

        def watch(test: Maps = test, seen: list[np.ndarray] = seen, classes: int = experience + 1) -> None:
            seen.append(_checked_scores(watched, test, classes))
            _demand_equal(watched.scores(test), seen[-1], "during a training, two calls of scores differ")
            check_rows_stand_alone(watched, test, seen[-1])
            _draw_random_numbers()

        log = watched.learn(experience, run, reader(stream), watch)
        unwatched = alone.learn(experience, run, reader(stream))
        _demand(log == unwatched, f"with a watch, learning run {experience} gives another log than without")
        assert_same_state(watched, alone, "one strategy was watched, the other was not")
        calls = max(0, len(log.loss) - 1) // WATCH_STEPS
        _demand(len(seen) == calls, f"a watch was called {len(seen)} times in {len(log.loss)} steps, not {calls} times")
        if seen:
            at_the_end = watched.scores(test)
            _demand(bool((at_the_end != seen[-1]).any()), "the last call of the watch came after the last gradient step")


def assert_same_state(first: Strategy, second: Strategy, after: str = "the same was done to both") -> None:
    """Raise AssertionError unless two strategies have states of the same names, types, shapes and bits."""
    _demand_same_state(first.state(), second.state(), after)


def _demand(met: bool, sentence: str) -> None:
    if not met:
        raise AssertionError(sentence)


def _demand_equal(found: np.ndarray, wanted: np.ndarray, sentence: str) -> None:
    _demand(np.array_equal(found, wanted), sentence)


def _demand_close(found: np.ndarray, wanted: np.ndarray, sentence: str) -> None:
    _demand(bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE)), sentence)


def _demand_same_state(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], after: str) -> None:
    differing = sorted(found.keys() ^ wanted.keys())
    _demand(not differing, f"{after}, but only one state has {', '.join(differing)}")
    for name, array in found.items():
        same = array.dtype == wanted[name].dtype and np.array_equal(array, wanted[name], equal_nan=array.dtype.kind == "f")
        _demand(same, f"{after}, but the states differ in {name}")


def _demand_same_bytes(strategy: Strategy, snapshot: Snapshot) -> None:
    found, wanted = (strategy.memory_bytes(), strategy.state_bytes()), (snapshot.memory_bytes, snapshot.state_bytes)
    _demand(found == wanted, f"memory_bytes and state_bytes are {found} after a restore, and {wanted} without")


@contextmanager
def _raises(kind: type[Exception], demand: str, said: str = "") -> Iterator[None]:
    """Raise AssertionError unless the body raises an error of this kind whose message contains these words."""
    try:
        yield
    except kind as error:
        _demand(said in str(error), f"{demand}; the message must contain {said!r}, not {str(error)!r}")
    else:
        raise AssertionError(f"{demand}, with {kind.__name__}")


def _copied(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in state.items()}


def _nbytes(state: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in state.values())


def _draw_random_numbers() -> None:
    """Move the global random states, as other code in the process might."""
    np.random.random(3)
    if "torch" in sys.modules:
        sys.modules["torch"].rand(3)


def _only_before(stream: list[RunData], experience: int) -> Callable[[int], RunData]:
    def past(i: int) -> RunData:
        _demand(i < experience, f"while learning run {experience}, past({i}) was called: only earlier runs may be read")
        return stream[i]

    return past
