"""One experience: evaluated before and after, and watched during training; and the results of a history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.closed_form.naive_bayes import NaiveBayes
from dqmstream.learners.evaluation.evaluator import Evaluator
from dqmstream.learners.evaluation.history import beside_joint, results
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.evaluation.stability_gap import LUMISECTIONS, MOMENTS, Watcher
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.novelty import NewRunScores
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Strategy, Watch
from dqmstream.learners.stream.experience import learn_and_evaluate
from dqmstream.learners.stream.learner_state import LearnerState
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

STREAM = make_stream(5, drift=0.02, seed=4)


class Gap:
    """Tells runs by their mean count, except during the first half of a training: then it gives everything to the new run.

    steps: calls of `watch` in a training, the first half of them within the gap.
    """

    name = "gap"

    def __init__(self, steps: int = 10) -> None:
        self.steps = steps
        self.blind = False
        self.asked: list[tuple[int, int]] = []
        self._keys: list[float] = []

    @property
    def classes(self) -> int:
        return len(self._keys)

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        self._keys.append(float(run.maps.counts.mean()))
        for step in range(self.steps):
            self.blind = step < self.steps // 2
            if watch is not None:
                watch()
        self.blind = False
        return LearnLog(loss=[1.0], samples=3, flops=1e6)

    def scores(self, maps: Maps) -> np.ndarray:
        self.asked.append((self.classes, len(maps)))
        if self.blind:
            return np.tile(np.arange(self.classes, dtype=float), (len(maps), 1))
        return -100 * (maps.counts.mean(axis=(1, 2, 3))[:, None] - np.array(self._keys)) ** 2

    def state(self) -> dict[str, np.ndarray]:
        return {"keys": np.array(self._keys)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._keys = state["keys"].tolist()

    def memory_bytes(self) -> int:
        return 8 * self.classes

    def state_bytes(self) -> int:
        return 0


class NumbersOfRuns:
    """Stands in for the new-run score: a lumisection with a larger mean count than any known run is new."""

    def __init__(self) -> None:
        self._known = 0.0

    def learn(self, experience: int, run: RunData, past: object) -> None:
        self._known = max(self._known, float(run.maps.counts.mean()))

    def reference_summary(self) -> None:
        return None

    def beyond(self, maps: Maps) -> None:
        return None

    def score_each(self, several: Sequence[Maps]) -> list[NewRunScores]:
        scores = [maps.counts.mean(axis=(1, 2, 3)) - self._known for maps in several]
        return [NewRunScores(score, *np.zeros((3, len(score)))) for score in scores]


def flat_stream(runs: int) -> list[RunData]:
    """Runs whose lumisections all have one count, a different one in each run."""
    stream = []
    for i, run in enumerate(make_stream(runs, drift=0.0, n=400)):
        maps = run.maps
        counts = np.full((len(maps), 1, 1, 1), float(i), np.float32)
        stream.append(RunData(run.run, Maps(counts, maps.n_events, maps.pileup, maps.lumisection), run.parts))
    return stream


def learn(
    strategy: Strategy, stream: list[RunData], watcher: Watcher | None = None, **baselines: Strategy
) -> list[HistoryLine]:
    state = LearnerState(strategy, baselines, NumbersOfRuns(), Evaluator(), watcher)
    lines = []
    for number, run in enumerate(stream):
        line, scores = learn_and_evaluate(state, number, run, reader(stream))
        assert (scores is None) == (number == 0)
        lines.append(HistoryLine.from_json(json.loads(json.dumps(line.to_json(), allow_nan=False))))
    return lines


@pytest.fixture(scope="module")
def lines() -> list[HistoryLine]:
    """The history of naive Bayes, with gain maps as a baseline."""
    made = {made.name: made(Geometry(1), 0) for made in (NaiveBayes, GainMap)}
    return learn(made["naive_bayes"], STREAM, gain_map=made["gain_map"])


def test_no_archive_is_needed_and_the_line_is_json(lines: list[HistoryLine]) -> None:
    assert [line.run for line in lines] == [run.run for run in STREAM]
    assert lines[0].accuracy is None
    assert [line.before is None for line in lines] == [True, True, False, False, False]
    for t, line in enumerate(lines[1:], 1):
        assert all(len(getattr(line, name)) == t + 1 for name in ("accuracy", "auc", "auc_fixed"))
    assert lines[-1].seconds.keys() == {"evaluate", "learn", "baseline.gain_map", "novelty"}


def test_results_have_every_figure_of_the_learner_and_of_what_ran_beside(lines: list[HistoryLine]) -> None:
    found = results(lines)
    last = lines[-1]
    assert found["average_accuracy"] == pytest.approx(np.mean(last.accuracy))
    assert found["average_auc_fixed"] == pytest.approx(np.mean(last.auc_fixed))
    assert found["any_time_accuracy"] == pytest.approx(np.mean([np.mean(line.accuracy) for line in lines[1:]]))
    assert found["backward_transfer"] == pytest.approx(-found["forgetting_initial"])
    assert found["new_run_auc"] == pytest.approx(np.mean([line.before.new_run_auc for line in lines[2:]]))
    assert found["calibration"] == asdict(last.calibration)
    assert found["flops"] == sum(line.flops for line in lines) > 0
    assert found["min_accuracy_within_training"] is found["worst_case_within_training"] is None, "nothing was watched"
    assert found["worst_case_per_experience"] is not None
    beside = found["baseline_figures"]["gain_map"]
    assert beside["average_accuracy"] == found["baselines"]["gain_map"]
    assert beside["calibration"] == asdict(last.baselines["gain_map"].calibration)
    assert beside["flops"] == sum(line.baseline_flops["gain_map"] for line in lines)
    assert beside["new_run_auc"] is None
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_kind"].values()), abs=0.01)
    alone = results(learn(GainMap(Geometry(1), 0), STREAM))
    for name in ("average_accuracy", "average_auc_fixed", "forgetting", "worst_case_per_experience", "calibration", "flops"):
        assert alone[name] == beside[name], f"{name} of a baseline is what it would be as a learner"


def test_a_history_written_before_these_figures_still_reads(lines: list[HistoryLine]) -> None:
    old = [HistoryLine.from_json(without_new_fields(line.to_json())) for line in lines]
    found, now = results(old), results(lines)
    for name in ("average_accuracy", "average_auc", "forgetting", "any_time_accuracy", "accuracy_matrix", "baselines_auc"):
        assert found[name] == now[name]
    for name in ("average_auc_fixed", "calibration", "flops", "min_accuracy_within_training"):
        assert found[name] is None
    assert found["seconds"] > 0


def without_new_fields(line: dict[str, Any]) -> dict[str, Any]:
    new = ("auc_fixed", "calibration", "watched", "flops", "baseline_flops")
    beside = {name: of_it and _without(of_it, new) for name, of_it in line["baselines"].items()}
    seconds = {kind.replace("baseline.gain_map", "baselines"): value for kind, value in line["seconds"].items()}
    return _without(line, new) | {"baselines": beside, "seconds": seconds}


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_known_lumisections_are_not_scored_again_before_a_run_is_learnt() -> None:
    strategy, stream = Gap(), flat_stream(4)
    learn(strategy, stream)
    of_evaluation = sum(len(run.part(part)) for run in stream[:3] for part in (Part.TEST, Part.VALIDATION))
    new = len(stream[3].part(Part.TEST))
    assert sum(lumisections for classes, lumisections in strategy.asked if classes == 3) == of_evaluation + new


def test_a_stability_gap_is_seen_by_watching_and_by_nothing_else() -> None:
    stream = flat_stream(4)
    plain, watched = results(learn(Gap(), stream)), results(learn(Gap(), stream, Watcher(4000)))
    assert plain["average_accuracy"] == watched["average_accuracy"] == 1.0
    assert plain["forgetting"] == watched["forgetting"] == 0.0
    assert watched["worst_case_per_experience"] == 1.0
    assert watched["min_accuracy_within_training"] == 0.0
    assert watched["worst_case_within_training"] == pytest.approx(1 / 4)
    assert plain["worst_case_within_training"] is None


def test_watching_is_bounded_however_long_a_training_and_however_many_runs() -> None:
    budget, stream, strategy = 1200, flat_stream(12), Gap(steps=500)
    lines = learn(strategy, stream, Watcher(budget))
    assert [line.watched is None for line in lines[:3]] == [True, True, False], "the second run is the first training"
    for line in lines[2:]:
        watched = line.watched
        assert watched.calls == 500
        assert watched.lumisections <= budget
        assert len(watched.lowest) <= budget // (LUMISECTIONS * MOMENTS)
        assert watched.moments >= MOMENTS
    dropped: set[int] = set()
    before: set[int] = set()
    for line in lines[2:]:
        now = {i for i in line.watched.lowest}
        assert not now & dropped, "a run that was dropped does not come back"
        dropped |= before - now
        before = now
    assert dropped


def test_what_is_watched_first_is_the_beginning() -> None:
    watcher, strategy = Watcher(LUMISECTIONS * MOMENTS), Gap()
    for number, run in enumerate(flat_stream(2)):
        strategy.learn(number, run, reader([]))
        watcher.add(number, run)
    looked = []
    for call in range(1, 101):
        asked = len(strategy.asked)
        watcher.call(strategy)
        if len(strategy.asked) > asked:
            looked.append(call)
    assert looked[:8] == [1, 2, 3, 4, 5, 6, 8, 10]
    assert len(looked) == MOMENTS - 1, "one look is kept for the end"
    assert watcher.end(strategy).moments == MOMENTS


def test_a_watch_too_small_for_one_run_is_refused() -> None:
    with pytest.raises(InputError, match="400 lumisections a training at least, not 399"):
        Watcher(399)


def test_a_learner_stands_between_naive_and_joint() -> None:
    def history(*averages: float | None) -> list[HistoryLine]:
        return [HistoryLine(t, 7 + t, "", accuracy=None if a is None else [a] * (t + 1)) for t, a in enumerate(averages)]

    found = beside_joint(history(None, 0.5, 0.25), history(None, 0.75, 0.5), history(None, 1.0, 1.0, 0.9))
    assert found.runs == [7, 8, 9]
    assert found.share == [None, pytest.approx(0.5), pytest.approx(1 / 3)]
    assert found.last == found.share[-1]
    other = history(None, 0.5)
    other[1] = replace(other[1], run=99)
    with pytest.raises(InputError, match="same runs in the same order"):
        beside_joint(history(None, 0.5), other, history(None, 0.5))
