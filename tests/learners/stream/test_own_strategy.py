"""A strategy object that no registry knows: it is learnt with, killed and resumed, replayed, and loaded to score maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.learners.evaluation.history import read_history
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.saved_state import STAMP, check_stamp, stamp
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import LearnLog, Past, Watch
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.flags import Flagger
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import describe, maps_of, read_experience
from dqmstream.learners.stream.loaded import LoadedLearner
from dqmstream.learners.stream.replay import replay
from dqmstream.storage.archive import Archive
from tests.learners.stream.test_learner import assert_same_bits
from tests.runs import simulated_archive


class NearestMean:
    """Compares a map of normalised counts with the mean map of each run."""

    name = "nearest_mean"

    def __init__(self, sharpness: float = 1e4) -> None:
        self._sharpness, self._means = sharpness, list[np.ndarray]()

    @property
    def classes(self) -> int:
        return len(self._means)

    def set_reference(self, reference: object) -> None:
        pass

    def learn(self, experience: int, run: RunData, past: Past, watch: Watch | None = None) -> LearnLog:
        self._means.append(self._normalised(run.part(Part.TRAIN)).mean(axis=0))
        return LearnLog()

    def scores(self, maps: Maps) -> np.ndarray:
        normalised = self._normalised(maps)
        return -self._sharpness * np.stack([((normalised - mean) ** 2).sum(axis=1) for mean in self._means], axis=1)

    def _normalised(self, maps: Maps) -> np.ndarray:
        flat = maps.counts.reshape(len(maps), -1).astype(float)
        return flat / np.maximum(flat.sum(axis=1, keepdims=True), 1)

    def state(self) -> dict[str, np.ndarray]:
        return {"means": np.array(self._means)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._means = list(state["means"])

    def memory_bytes(self) -> int:
        return sum(mean.nbytes for mean in self._means)

    def state_bytes(self) -> int:
        return 0


class Stamped(NearestMean):
    """Its state says what it belongs to."""

    name = "stamped"

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {STAMP: stamp({"sharpness": self._sharpness})}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        check_stamp(state, {"sharpness": self._sharpness})
        super().restore(state)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("runs"), runs=3)


@pytest.fixture(scope="module")
def unbroken(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "nearest_mean"
    with Learner(archive, folder, strategy=NearestMean()) as learner:
        learner.follow(once=True)
        assert learner.results()["average_accuracy"] > 0.6
    return folder


def test_it_is_killed_in_the_third_run_and_resumes_to_the_same_bits(
    archive: Archive, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    def dies(self: NearestMean, *arguments: object) -> LearnLog:
        raise Death if self.classes == 2 else AssertionError

    real = NearestMean.learn
    monkeypatch.setattr(NearestMean, "learn", lambda self, *rest: (real if self.classes < 2 else dies)(self, *rest))
    with pytest.raises(Death), Learner(archive, tmp_path / "broken", strategy=NearestMean()) as learner:
        learner.follow(once=True)
    monkeypatch.undo()
    with Learner(archive, tmp_path / "broken", strategy=NearestMean()) as learner:
        assert learner.learnt == 2
        learner.follow(once=True)
    assert_same_bits(unbroken, tmp_path / "broken")
    replay(archive, tmp_path, LearnerSettings(), strategy=NearestMean(), ledger=unbroken / "ledger.jsonl")
    assert_same_bits(unbroken, tmp_path / "replay-nearest_mean-0")


def test_its_state_is_refused_to_another_strategy(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="belongs to a learner with strategy nearest_mean, not gain_map"):
        Learner(archive, unbroken, strategy="gain_map").open()
    with Learner(archive, tmp_path / "stamped", strategy=Stamped()):
        pass
    with pytest.raises(StateError, match=r"stamp \{\"sharpness\": 10000.0\}, not \{\"sharpness\": 5.0\}"):
        Learner(archive, tmp_path / "stamped", strategy=Stamped(5.0)).open()
    with Learner(archive, tmp_path / "stamped", strategy=Stamped()) as learner:
        learner.follow(once=True)
    again = LoadedLearner(tmp_path / "stamped", Stamped())
    assert len(again.runs) == 3
    with pytest.raises(StateError, match=r"sharpness is 10000\.0 there and 5\.0 here"):
        LoadedLearner(tmp_path / "stamped", Stamped(5.0))


def test_an_object_that_has_learnt_already_is_refused(archive: Archive, tmp_path: Path) -> None:
    used = NearestMean()
    used.learn(0, read_experience(archive, describe(archive, archive.runs()[0].run, 0)), lambda number: pytest.fail("asked"))
    with pytest.raises(InputError, match="nearest_mean has learnt 1 runs already: give a new object"):
        Learner(archive, tmp_path / "used", strategy=used).open()


def test_a_learner_that_is_not_open_says_so(archive: Archive, tmp_path: Path) -> None:
    learner = Learner(archive, tmp_path / "closed", strategy=NearestMean())
    for call in (learner.follow, learner.results, lambda: learner.again(1)):
        with pytest.raises(InputError, match="the learner is not open"):
            call()
    assert not (tmp_path / "closed").exists(), "nothing is written before it is opened"
    learner.close()


def test_without_a_folder_the_state_lies_beside_the_archive(archive: Archive) -> None:
    with Learner(str(archive.path), strategy=NearestMean()) as learner:
        assert learner.folder.path == archive.path.with_name(f"{archive.path.name}.state") / "nearest_mean"


def test_a_learner_is_loaded_by_its_folder_and_scores_maps(archive: Archive, unbroken: Path) -> None:
    loaded = LoadedLearner(str(unbroken), NearestMean())
    runs = [summary.run for summary in archive.runs()]
    assert loaded.runs == runs and loaded.strategy_name == "nearest_mean" and "3 runs" in repr(loaded)
    accuracy = read_history(unbroken / "history.jsonl")[-1].accuracy
    assert accuracy is not None
    for run, expected in zip(runs, accuracy, strict=True):
        test = read_experience(archive, describe(archive, run, 0)).part(Part.TEST)
        scores = loaded.scores(test)
        assert scores.shape == (len(test), 3)
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1)
        np.testing.assert_array_equal(loaded.predict(test), np.array(runs)[scores.argmax(axis=1)])
        assert np.mean(loaded.predict(test) == run) == expected
    flags = Flagger(archive, unbroken, NearestMean()).flags(runs[1], 0.01, 0.05)
    assert flags.learnt
    np.testing.assert_array_equal(flags.top[:, 0], loaded.predict(maps_of(archive.run(runs[1]))))


def test_what_cannot_be_loaded_says_what_to_do(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"there is no strategy 'nearest_mean'.* or give an object of its strategy"):
        LoadedLearner(unbroken)
    with pytest.raises(StateError, match=r"holds no checkpoint.* learners there: nearest_mean"):
        LoadedLearner(unbroken.parent / "other")
    assert checkpoint.learnt(unbroken / "checkpoints") == 3
