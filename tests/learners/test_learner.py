"""The incremental learner: ledger, checkpoint, resume, and what it refuses."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import ArchiveError, InputError, StateError
from dqmstream.experiments.replay import replay
from dqmstream.learners import checkpoint
from dqmstream.learners.learner import Learner, LearnerSettings
from dqmstream.learners.ledger import read_ledger
from dqmstream.storage.archive import Archive
from dqmstream.storage.importer import import_files
from dqmstream.storage.log import ArchiveWriter
from tests.maps import counts, rows, write_run
from tests.runs import simulated_archive

SETTINGS = LearnerSettings(strategy="gain_map", seed=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("runs"))


def learn_all(archive: Archive, folder: Path, settings: LearnerSettings = SETTINGS) -> None:
    learner = Learner(archive, folder, settings)
    learner.follow(lambda: False, once=True)
    learner.close()


def stored_bits(folder: Path) -> tuple[list[dict[str, object]], dict[str, np.ndarray], np.ndarray]:
    """History without its clock, arrays of the newest checkpoint, scores of the newest evaluation."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    found = checkpoint.load_newest(folder / "checkpoints")
    assert found is not None
    with np.load(sorted((folder / "scores").glob("*.npz"))[-1]) as scores:
        return lines, found[1], scores["log_probability"]


def assert_same_bits(one: Path, other: Path) -> None:
    lines, arrays, scores = stored_bits(one)
    other_lines, other_arrays, other_scores = stored_bits(other)
    assert lines == other_lines
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)
    np.testing.assert_array_equal(scores, other_scores)


def test_the_history_can_be_read_without_dqmstream(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    lines = [json.loads(line) for line in (tmp_path / "live" / "history.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == [s.run for s in archive.runs()]
    assert lines[0]["accuracy"] is None
    assert [len(line["accuracy"]) for line in lines[1:]] == [2, 3, 4]
    assert lines[3]["before"]["nearest_run"] in [line["run"] for line in lines[:3]]
    assert set(lines[3]["baselines"]) == {"ring_means", "naive_bayes", "gain_map"}
    assert lines[3]["lumisections"] == {"gap": 60, "train": 100, "validation": 10, "test": 30}
    assert np.mean(lines[3]["accuracy"]) > 0.8


def test_every_experience_is_tagged_and_frozen(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "frozen")
    state = json.loads((tmp_path / "frozen" / "state.json").read_text())
    ledger = read_ledger(tmp_path / "frozen" / "ledger.jsonl")
    tags = archive.tags()
    for line in ledger:
        assert tags[f"frozen.{state['id']}.{line.id:06d}"] == line.snapshot


@pytest.mark.parametrize("dies_after", ["history", "checkpoint"])
def test_a_learner_that_dies_resumes_to_the_same_bits(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: str
) -> None:
    """It dies while it learns the third run: before the checkpoint, when history is a line ahead, or right after it."""
    learn_all(archive, tmp_path / "unbroken")

    class Death(BaseException):
        pass

    learner = Learner(archive, tmp_path / "broken", SETTINGS)
    real_save = checkpoint.save

    def save(folder: Path, meta: checkpoint.CheckpointMeta, arrays: dict[str, np.ndarray]) -> None:
        if meta.experience == 2 and dies_after == "history":
            raise Death
        real_save(folder, meta, arrays)
        if meta.experience == 2:
            raise Death

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Death):
        learner.follow(lambda: False, once=True)
    learner.close()
    monkeypatch.undo()
    assert len((tmp_path / "broken" / "history.jsonl").read_text().splitlines()) == 3
    learn_all(archive, tmp_path / "broken")
    assert_same_bits(tmp_path / "unbroken", tmp_path / "broken")


def test_replaying_a_ledger_gives_the_same_bits(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    replay(archive, tmp_path, SETTINGS, ledger=tmp_path / "live" / "ledger.jsonl")
    assert_same_bits(tmp_path / "live", tmp_path / "replay-gain_map-3")


def test_a_kill_between_ledger_and_tag_is_mended(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        pass

    def die(*_: object) -> None:
        raise Death

    learner = Learner(archive, tmp_path / "broken", SETTINGS)
    monkeypatch.setattr(Archive, "tag", die)
    with pytest.raises(Death):
        learner.follow(lambda: False, once=True)
    learner.close()
    monkeypatch.undo()
    learn_all(archive, tmp_path / "broken")
    learn_all(archive, tmp_path / "unbroken")
    assert_same_bits(tmp_path / "broken", tmp_path / "unbroken")
    state_id = json.loads((tmp_path / "broken" / "state.json").read_text())["id"]
    assert [name for name in archive.tags() if state_id in name] == [f"broken.{state_id}.{i:06d}" for i in range(4)]


def test_a_replay_that_is_refused_leaves_the_last_one(archive: Archive, tmp_path: Path) -> None:
    replay(archive, tmp_path, SETTINGS)
    before = {path: path.read_bytes() for path in (tmp_path / "replay-gain_map-3").rglob("*") if path.is_file()}
    other = simulated_archive(tmp_path / "other", seed=2, runs=2)
    learn_all(other, tmp_path / "foreign")
    with pytest.raises(ArchiveError, match="no snapshot"):
        replay(archive, tmp_path, SETTINGS, ledger=tmp_path / "foreign" / "ledger.jsonl")
    with pytest.raises(InputError, match="device"):
        replay(archive, tmp_path, LearnerSettings(strategy="naive", device="abacus"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "replay-gain_map-3").rglob("*") if path.is_file()}
    assert not (tmp_path / "replay-naive-0").exists()


def test_a_replay_anew_drops_the_old_one_and_its_tags(archive: Archive, tmp_path: Path) -> None:
    replay(archive, tmp_path / "once", SETTINGS)
    count = len(archive.tags())
    replay(archive, tmp_path / "once", SETTINGS)
    assert len(archive.tags()) == count


def test_a_resumed_replay_keeps_its_order(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    ledger = tmp_path / "live" / "ledger.jsonl"
    replay(archive, tmp_path, SETTINGS, ledger=ledger)
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="another order"):
        replay(archive, tmp_path, SETTINGS, ledger=ledger, resume=True)


def test_a_replay_that_was_stopped_resumes(archive: Archive, tmp_path: Path) -> None:
    whole = replay(archive, tmp_path / "whole", SETTINGS)

    def stop_at_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(archive, tmp_path / "parts", SETTINGS, progress=stop_at_two)
    resumed = replay(archive, tmp_path / "parts", SETTINGS, resume=True)
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    assert resumed["runs"] == resumed["classes"] == sorted(whole["runs"])
    assert_same_bits(tmp_path / "whole" / "replay-gain_map-3", tmp_path / "parts" / "replay-gain_map-3")


def test_a_learner_that_is_watched_resumes_to_the_same_bits_and_learns_the_same(archive: Archive, tmp_path: Path) -> None:
    watched = replace(SETTINGS, watch_samples=400)
    whole, plain = replay(archive, tmp_path / "whole", watched), replay(archive, tmp_path / "plain", SETTINGS)

    def stop_at_three(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(archive, tmp_path / "parts", watched, progress=stop_at_three)
    replay(archive, tmp_path / "parts", watched, resume=True)
    assert_same_bits(tmp_path / "whole" / "replay-gain_map-3", tmp_path / "parts" / "replay-gain_map-3")
    assert whole["accuracy_matrix"] == plain["accuracy_matrix"]
    assert whole["min_accuracy_within_training"] is not None
    assert plain["min_accuracy_within_training"] is None


def test_late_lumisections_change_no_past_experience(archive: Archive, tmp_path: Path) -> None:
    copy = tmp_path / "A"
    shutil.copytree(archive.path, copy)
    late = Archive.open(copy)
    learn_all(late, tmp_path / "early")
    run = late.runs()[0].run
    ArchiveWriter(late).append("late", 0, rows(late, run, range(199, 211), 0), 0, 12)
    learner = Learner(late.refresh(), tmp_path / "early", SETTINGS)
    learner.follow(lambda: False, once=True)
    learner.close()
    status = json.loads((tmp_path / "early" / "status.json").read_text())
    assert status["late_lumisections"] == {str(run): 10}
    assert status["revised_lumisections"] == {str(run): 2}
    replay(late.refresh(), tmp_path, SETTINGS, ledger=tmp_path / "early" / "ledger.jsonl")
    assert_same_bits(tmp_path / "early", tmp_path / "replay-gain_map-3")


def test_a_short_run_is_left_out_with_its_reason(archive: Archive, tmp_path: Path) -> None:
    copy = tmp_path / "A"
    shutil.copytree(archive.path, copy)
    path = write_run(tmp_path, 999999, counts(999999, 30))
    import_files([path], lambda: Archive.open(copy), dtype=np.dtype("float32"), depths=1)
    found = replay(Archive.open(copy), tmp_path, SETTINGS)
    assert found["left_out"] == {"999999": "too short: no lumisection for validation, test"}
    assert 999999 not in found["runs"]


def test_an_open_run_waits_until_it_is_stopped_or_idle(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 5, range(1, 201), 0), 0, 200)
    patient = Learner(archive.refresh(), tmp_path / "patient", SETTINGS)
    patient.follow(lambda: False, once=True)
    assert patient.learnt == 0
    patient.close()
    assert json.loads((tmp_path / "patient" / "status.json").read_text())["open_runs"] == 1
    hasty = Learner(archive.refresh(), tmp_path / "hasty", LearnerSettings(strategy="gain_map", idle_s=1e-9))
    hasty.follow(lambda: False, once=True)
    assert hasty.learnt == 1
    hasty.close()


def test_a_pause_of_the_service_is_no_silence_of_the_detector(tmp_path: Path) -> None:
    """The run's last row is older than idle_s, but the learner has only just come back, and ingest with it."""
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 5, range(1, 201), 0), 0, 200)
    last = archive.refresh().runs()[0].last_committed_ns
    while time.time_ns() - last < 1_100_000_000:
        pass
    looks: list[int] = []
    back = Learner(archive.refresh(), tmp_path / "back", LearnerSettings(strategy="gain_map", idle_s=1.0))
    back.follow(lambda: len(looks) == 2, wait=looks.append)
    assert back.learnt == 0
    back.close()


def test_a_state_of_another_learner_is_refused_untouched(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    before = {path: path.read_bytes() for path in (tmp_path / "live").rglob("*") if path.is_file()}
    for settings, says in (
        (LearnerSettings(strategy="naive_bayes", seed=3), "strategy gain_map, not naive_bayes"),
        (LearnerSettings(strategy="gain_map", seed=4), "seed 3, not 4"),
        (LearnerSettings(strategy="gain_map", seed=3, memory_bytes=5), "memory_bytes 1000000, not 5"),
    ):
        with pytest.raises(StateError, match=says):
            Learner(archive, tmp_path / "live", settings)
    assert before == {path: path.read_bytes() for path in (tmp_path / "live").rglob("*") if path.is_file()}


def test_one_learner_at_a_time(archive: Archive, tmp_path: Path) -> None:
    first = Learner(archive, tmp_path / "live", SETTINGS)
    with pytest.raises(StateError, match="in use by another learner"):
        Learner(archive, tmp_path / "live", SETTINGS)
    first.close()
    Learner(archive, tmp_path / "live", SETTINGS).close()


def test_a_damaged_checkpoint_is_refused(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    arrays = tmp_path / "live" / "checkpoints" / "000003" / "arrays.safetensors"
    damaged = bytearray(arrays.read_bytes())
    damaged[-1] ^= 1
    arrays.write_bytes(damaged)
    with pytest.raises(StateError, match=r"damaged \(SHA-256 differs\)"):
        Learner(archive, tmp_path / "live", SETTINGS)
    shutil.rmtree(arrays.parent)  # as the message says
    learn_all(archive, tmp_path / "live")
    learn_all(archive, tmp_path / "unbroken")
    assert_same_bits(tmp_path / "live", tmp_path / "unbroken")


def test_a_ledger_of_another_archive_is_refused(archive: Archive, tmp_path: Path) -> None:
    learn_all(archive, tmp_path / "live")
    other = simulated_archive(tmp_path / "other", seed=2, runs=2)
    with pytest.raises((StateError, ArchiveError), match="snapshot"):
        replay(other, tmp_path, SETTINGS, ledger=tmp_path / "live" / "ledger.jsonl")
    (tmp_path / "noise").write_text("noise\n")
    with pytest.raises(InputError, match="is no ledger"):
        replay(archive, tmp_path, SETTINGS, ledger=tmp_path / "noise")


def test_one_run_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 5, range(1, 201), 0), 0, 200)
    with pytest.raises(InputError, match="nothing to tell apart"):
        replay(archive.refresh(), tmp_path, SETTINGS)
