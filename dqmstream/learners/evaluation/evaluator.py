"""The evaluator: keeps test and validation lumisections of every run, and has strategies score them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from scipy.special import log_softmax

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.history_line import BeforeLearning
from dqmstream.learners.evaluation.matrix_row import Scores
from dqmstream.learners.evaluation.repeated_runs import merge_repeated, newest_of_run
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.evaluation.whole_blocks import WholeBlocks
from dqmstream.learners.maps import Maps, RunData, joined
from dqmstream.learners.memory.map_codec import packed, unpacked
from dqmstream.learners.saved_state import prefixed, within
from dqmstream.learners.splits import Part

VALIDATION_SHARE = 3
"""Test lumisections for one validation lumisection, as in the split (`learners.splits`)."""

NOTICED = 32
"""Most known runs that a new run is compared with, spread evenly from the first to the newest."""

BATCH = 256
"""Lumisections that are joined, at least, for one call of `scores`."""


class Scorer(Protocol):
    """What can be evaluated: a strategy, or a bound that knows the truth and learns nothing."""

    def scores(self, maps: Maps) -> np.ndarray:
        """As `Strategy.scores`."""
        ...


class HasScore(Protocol):
    """What a new-run score returns for n lumisections."""

    @property
    def score(self) -> np.ndarray:
        """float64, shape (n,): large where the lumisections are of no known run."""
        ...


class NewRunScore(Protocol):
    """Says whether lumisections belong to no run that it knows."""

    def score_each(self, several: Sequence[Maps]) -> Sequence[HasScore]:
        """Score several runs, each independently of the others."""
        ...


class Evaluator:
    """Evaluates strategies on lumisections of every run so far, at a cost that does not grow with their number.

    budget: test lumisections that an evaluation scores, over all runs. A third as many validation lumisections are scored
    too, for the temperature. Where the runs have more, each keeps budget // runs of its own, drawn by its run number; what is
    kept later is a subset of what was kept before.

    The accuracy of one run therefore gets coarse as runs arrive: with a budget of 6000, each of 1000 runs keeps 6 lumisections
    and its accuracy is uncertain by up to .2. The mean over the runs stays certain to .006. Figures that take a maximum or
    minimum over t (forgetting, the worst case) are larger, or lower, by the chance movement of such a column.

    With more runs than `budget` each keeps one test lumisection and the cost grows again. With more runs than validation
    lumisections these are kept of every second run, every fourth, and so on.

    Lumisections that are drawn so have no neighbours. Where they are, whole blocks of a few runs are scored beside them for the
    figures by the last n lumisections (`learners.evaluation.whole_blocks`), an eighth as many again.
    """

    def __init__(self, budget: int = 6000) -> None:
        self.budget = budget
        self.runs: list[int] = []
        """The run of each experience so far."""
        self._tests: list[Maps] = []
        self._validations: list[Maps] = []
        self._blocks = WholeBlocks(budget)
        self._thinned = False  # whether any run has lost a lumisection to the budget

    def add(self, run: RunData) -> None:
        """Add the test and validation parts of the next experience; they replace those of an earlier experience of its run."""
        for i in self.earlier(run.run):
            self._tests[i], self._validations[i] = (_draw(maps[i], 0, 0) for maps in (self._tests, self._validations))
            self._blocks.remove(i)
        self.runs.append(run.run)
        test, validation = run.part(Part.TEST), run.part(Part.VALIDATION)
        self._blocks.add(len(self.runs) - 1, run.run, test, validation)
        whole = [*self._tests, test], [*self._validations, validation]
        self._tests = self._within(self.budget, whole[0])
        budget = max(1, self.budget // VALIDATION_SHARE)
        # A power of two, so that what is kept later is a subset of what was kept before.
        every = 1 << (-(-len(self.runs) // budget) - 1).bit_length()
        kept = self._within(budget, whole[1])
        self._validations = [maps if number % every == 0 else _draw(maps, 0, 0) for number, maps in enumerate(kept)]
        after = self._tests, self._validations
        self._thinned |= any(sum(map(len, few)) < sum(map(len, all_)) for few, all_ in zip(after, whole, strict=True))

    def earlier(self, run: int) -> list[int]:
        """Experiences of this run so far; none for a new run."""
        return [i for i, known in enumerate(self.runs) if known == run]

    def newest(self) -> np.ndarray:
        """`newest_of_run` of the experiences so far."""
        return newest_of_run(self.runs)

    def state(self) -> dict[str, np.ndarray]:
        """Runs and kept lumisections, as named arrays."""
        kept = prefixed("test", packed(self._tests)) | prefixed("validation", packed(self._validations))
        # Where every test lumisection is kept, the blocks are found in them again.
        blocks = prefixed("blocks", self._blocks.state() if self._thinned else {})
        return kept | blocks | {"runs": np.array(self.runs, dtype=np.int64), "thinned": np.array([self._thinned])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave. Raises StateError if it is damaged."""
        tests, validations = unpacked(within(state, "test")), unpacked(within(state, "validation"))
        if "runs" not in state or not len(state["runs"]) == len(tests) == len(validations):
            raise StateError("the state lacks lumisections that are kept for judging; it is damaged")
        self.runs = state["runs"].tolist()
        self._tests, self._validations = tests, validations
        self._restore_blocks(state)

    def _restore_blocks(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back the blocks. An older state has none; they are found where its runs surely have all their lumisections."""
        self._blocks = WholeBlocks(self.budget)
        share = max(1, self.budget // max(1, len(self.runs)))
        known = "thinned" in state
        self._thinned = bool(state["thinned"][0]) if known else any(len(maps) >= share for maps in self._tests)
        if self._thinned and known:
            self._blocks.restore(within(state, "blocks"))
        elif not self._thinned:
            newest = set(self.newest().tolist())
            for number, (run, *parts) in enumerate(zip(self.runs, self._tests, self._validations, strict=True)):
                if number in newest:
                    self._blocks.add(number, run, *parts)

    def score(self, strategy: Scorer) -> Scores:
        """Scores of the kept test lumisections."""
        return self._score(strategy, self._tests)

    def score_validation(self, strategy: Scorer) -> Scores:
        """Scores of the kept validation lumisections."""
        return self._score(strategy, self._validations)

    def score_blocks(self, strategy: Scorer, test: Scores) -> Scores | None:
        """Scores of test lumisections with all their neighbours; None where no run has them.

        test: what `score` gave, which is returned where every lumisection is kept.
        """
        return test if not self._thinned else self._score_some(strategy, self._blocks.tests)

    def score_validation_blocks(self, strategy: Scorer, validation: Scores) -> Scores | None:
        """The same for the validation lumisections of these runs. validation: what `score_validation` gave."""
        return validation if not self._thinned else self._score_some(strategy, self._blocks.validations)

    def before(
        self, strategy: Scorer, new_run_score: NewRunScore, run: RunData, largest: np.ndarray | None = None
    ) -> BeforeLearning:
        """Evaluate a run that has not been learnt, on at most `budget` of its lumisections. Two runs must be known.

        largest: largest log-probability of each kept test lumisection, (n,), as the strategy is now. Computed where it is None.
        """
        test = _draw(run.part(Part.TEST), self.budget, run.run)
        new = merge_repeated(log_softmax(strategy.scores(test), axis=1), self.runs)
        known = self.score(strategy).log_probability.max(axis=1) if largest is None else largest
        mean = np.exp(new).mean(axis=0)
        nearest = int(mean.argmax())
        as_many = _draw(test, max(1, self.budget // len(self.runs)), run.run)
        kept = np.unique(self.newest())
        some = kept[np.unique(np.linspace(0, len(kept) - 1, NOTICED).round().astype(int))]
        of_new, *of_known = (found.score for found in new_run_score.score_each([as_many, *(self._tests[i] for i in some)]))
        return BeforeLearning(
            new_run_auc=auc(of_new, np.concatenate(of_known)),
            probability_auc=auc(-new.max(axis=1), -known),
            nearest_run=self.runs[nearest],
            nearest_probability=float(mean[nearest]),
        )

    def _within(self, budget: int, parts: list[Maps]) -> list[Maps]:
        share = max(1, budget // len(self.runs))
        return [_draw(maps, share, number) for maps, number in zip(parts, self.runs, strict=True)]

    def _score_some(self, strategy: Scorer, blocks: list[Maps]) -> Scores | None:
        return self._score(strategy, blocks, np.array(self._blocks.numbers)) if any(map(len, blocks)) else None

    def _score(self, strategy: Scorer, parts: list[Maps], numbers: np.ndarray | None = None) -> Scores:
        """Scores of the parts of the given experiences; of all of them by default."""
        scores = Scores(
            np.concatenate([log_softmax(strategy.scores(maps), axis=1) for maps in _in_batches(parts)]),
            np.repeat(np.arange(len(parts)) if numbers is None else numbers, [len(maps) for maps in parts]),
            np.concatenate([maps.lumisection for maps in parts]),
        )
        return replace(scores, log_probability=merge_repeated(scores.log_probability, self.runs))


def _in_batches(parts: list[Maps]) -> Iterator[Maps]:
    """The same lumisections in the same order, with small parts joined: 1000 runs of 6 lumisections take 24 calls."""
    batch: list[Maps] = []
    size = 0
    for i, maps in enumerate(parts):
        batch.append(maps)
        size += len(maps)
        if i == len(parts) - 1 or size >= BATCH:
            yield joined(batch)
            batch, size = [], 0


def _draw(maps: Maps, count: int, run: int) -> Maps:
    """At most `count` of the lumisections, in order; a larger count draws a superset."""
    if len(maps) <= count:
        return maps
    keep = np.random.default_rng(run).permutation(len(maps))[:count]
    return maps.take(np.sort(keep))
