"""The learner of an archive: ledger, checkpoint, resume, and what it refuses."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import ArchiveError, InputError, StateError
from dqmstream.experiments.report.curves import rocs
from dqmstream.experiments.report.learner_records import read_records
from dqmstream.learners.maps import Maps
from dqmstream.learners.splits import Part
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.flags import Flagger
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import Ledger, describe, read_experience, read_ledger
from dqmstream.learners.stream.replay import replay
from dqmstream.learners.stream.status import learner_status
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import counts, rows, write_run
from tests.runs import simulated_archive

SETTINGS = LearnerSettings(strategy="gain_map", seed=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def unbroken(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a learner that learnt all four runs without a break."""
    folder = tmp_path_factory.mktemp("unbroken") / "live"
    learn_all(archive, folder)
    return folder


def learn_all(archive: Archive, folder: Path, settings: LearnerSettings = SETTINGS) -> None:
    learner = Learner(archive, folder, settings).open()
    learner.follow(lambda: False, once=True)
    learner.close()


def stored_bits(folder: Path) -> tuple[list[dict[str, object]], dict[str, np.ndarray], np.ndarray]:
    """History without its seconds, arrays of the newest checkpoint, scores of the newest evaluation."""
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


def test_the_history_can_be_read_without_dqmstream(archive: Archive, unbroken: Path) -> None:
    lines = [json.loads(line) for line in (unbroken / "history.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == [s.run for s in archive.runs()]
    assert lines[0]["accuracy"] is None
    assert [len(line["accuracy"]) for line in lines[1:]] == [2, 3, 4]
    assert lines[3]["before"]["nearest_run"] in [line["run"] for line in lines[:3]]
    assert set(lines[3]["baselines"]) == {"ring_means", "naive_bayes", "gain_map"}
    assert lines[3]["lumisections"] == {"gap": 60, "train": 100, "validation": 10, "test": 30}
    assert np.mean(lines[3]["accuracy"]) > 0.8


def test_every_experience_is_tagged_and_frozen(archive: Archive, unbroken: Path) -> None:
    state = json.loads((unbroken / "state.json").read_text())
    ledger = read_ledger(unbroken / "ledger.jsonl")
    tags = archive.tags()
    for line in ledger:
        assert tags[f"live.{state['id']}.{line.snapshot}"] == line.snapshot


@pytest.mark.parametrize("dies_after", ["history", "checkpoint"])
def test_a_learner_that_dies_resumes_to_the_same_bits(
    archive: Archive, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: str
) -> None:
    """It dies at the third run: before the checkpoint, when the history is a line ahead, or right after the checkpoint."""

    class Death(BaseException):
        pass

    learner = Learner(archive, tmp_path / "broken", SETTINGS).open()
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
    assert_same_bits(unbroken, tmp_path / "broken")


def test_replaying_a_ledger_gives_the_same_bits(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    replay(archive, tmp_path, SETTINGS, ledger=unbroken / "ledger.jsonl")
    assert_same_bits(unbroken, tmp_path / "replay-gain_map-3")


def test_no_line_is_frozen_before_its_snapshot_is_tagged(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves a tag without a ledger line; after the restart the run is frozen as it is then."""

    class Death(BaseException):
        pass

    def die(*_: object) -> None:
        raise Death

    copy = copied(archive, tmp_path)
    learner = Learner(copy, tmp_path / "broken", SETTINGS).open()
    monkeypatch.setattr(Ledger, "append", die)
    with pytest.raises(Death):
        learner.follow(lambda: False, once=True)
    learner.close()
    monkeypatch.undo()
    state_id = json.loads((tmp_path / "broken" / "state.json").read_text())["id"]
    assert [snapshot for name, snapshot in copy.tags().items() if state_id in name] == [copy.snapshot]
    later = file_late(copy)
    later.expire(0)
    learn_all(later, tmp_path / "broken")
    assert {line.snapshot for line in read_ledger(tmp_path / "broken" / "ledger.jsonl")} == {later.snapshot}
    assert {copy.snapshot, later.snapshot} <= {snapshot for name, snapshot in later.tags().items() if state_id in name}


def copied(archive: Archive, folder: Path) -> Archive:
    """A copy of the archive without tags."""
    shutil.copytree(archive.path, folder / "A", ignore=shutil.ignore_patterns("tag.*"))
    return Archive.open(folder / "A")


def file_late(archive: Archive) -> Archive:
    """File two revisions and ten late lumisections of the first run in a commit of their own; returns the archive."""
    run = archive.runs()[0].run
    ArchiveWriter(archive).append("late", 0, rows(archive, run, range(199, 211), 0, source="moderate"), 0, 12)
    return archive.refresh()


def test_a_state_whose_snapshots_have_expired_goes_on_to_the_same_bits(
    archive: Archive, unbroken: Path, tmp_path: Path
) -> None:
    """The state has no tags, as one of an older version may, and the learner was stopped until the snapshots expired."""
    copy = copied(archive, tmp_path)
    down = Learner(copy, tmp_path / "down", SETTINGS).open()
    down.freeze([describe(copy, summary.run, number) for number, summary in enumerate(copy.runs())])
    for _ in range(2):
        down.step()
    down.close()
    copy.untag("")
    later = file_late(copy)
    later.expire(0)
    with pytest.raises(ArchiveError, match="no snapshot"):
        Archive.open(copy.path, copy.snapshot)
    learn_all(Archive.open(copy.path), tmp_path / "down")
    assert_same_bits(tmp_path / "down", unbroken)
    replay(later, tmp_path, SETTINGS, ledger=tmp_path / "down" / "ledger.jsonl")
    assert_same_bits(tmp_path / "replay-gain_map-3", unbroken)


def can_be_read(archive: Archive, run: int) -> bool:
    try:
        return bool(archive.run(run)["occupancy"].values.size)
    except ArchiveError:
        return False


def test_runs_that_the_archive_has_lost_are_left_out_and_no_other(archive: Archive, tmp_path: Path) -> None:
    """One run differs from its ledger line, and a file of the last run is damaged."""
    copy = copied(archive, tmp_path)
    learner = Learner(copy, tmp_path / "live", SETTINGS).open()
    learner.freeze([describe(copy, summary.run, number) for number, summary in enumerate(copy.runs())])
    learner.close()
    ledger = tmp_path / "live" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines[1] |= {"snapshot": "MTN55FY036G21DKK7E90", "digest": "0" * 32}
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for chunk in (copy.path / "chunks").iterdir():
        kept = chunk.read_bytes()
        chunk.write_bytes(b"")
        if [can_be_read(Archive.open(copy.path), line["run"]) for line in lines] == [True, True, True, False]:
            break
        chunk.write_bytes(kept)
    learn_all(Archive.open(copy.path), tmp_path / "live")
    left = read_ledger(ledger)
    assert [line.id for line in left] == [0, None, 1, None]
    assert "no snapshot with run" in left[1].left_out
    assert f"run {left[3].run} is lost: {copy.path} cannot be read" in left[3].left_out
    status = json.loads((tmp_path / "live" / "status.json").read_text())
    assert (status["experiences_learnt"], status["experiences_behind"]) == (2, 0)
    assert list(status["left_out"]) == [str(left[1].run), str(left[3].run)]


@pytest.mark.parametrize(("frozen", "window"), [(False, 0), (True, 100)])
def test_an_empty_run_first_is_left_out_with_its_reason(archive: Archive, tmp_path: Path, frozen: bool, window: int) -> None:
    """Also where the ledger holds it already, as that of an older version may."""
    settings = replace(SETTINGS, window=window)
    empty = Archive.create(tmp_path / "A")
    paths = [write_run(tmp_path, 1, np.zeros((200, 64, 72)), sidecars=False)]
    for run in (summary.run for summary in archive.runs()[:2]):
        paths.append(write_run(tmp_path, run, archive.run(run)["occupancy"].values[:, 0], sidecars=False))
    import_files(paths, lambda: empty, dtype=np.dtype("float32"), depths=1)
    empty = empty.refresh()
    learner = Learner(empty, tmp_path / "live", settings).open()
    if frozen:
        learner.freeze([describe(empty, 1, 0)])
    learner.close()
    learn_all(empty, tmp_path / "live", settings)
    lines = [line for line in read_ledger(tmp_path / "live" / "ledger.jsonl") if line.window is None]
    assert [(line.run, line.id) for line in lines] == [(1, None), *((s.run, i) for i, s in enumerate(archive.runs()[:2]))]
    assert lines[0].left_out == "empty: no lumisection for train, validation, test counts anything"
    found = replay(empty, tmp_path, settings)
    assert found["left_out"] == {"1": lines[0].left_out}
    assert_same_bits(tmp_path / "live", tmp_path / "replay-gain_map-3")
    replay(empty, tmp_path, settings, ledger=tmp_path / "live" / "ledger.jsonl", resume=True)
    assert_same_bits(tmp_path / "live", tmp_path / "replay-gain_map-3")
    learn_all(empty, tmp_path / "live", settings)


def test_a_learner_goes_on_without_reading_a_past_run(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    """No map can be read any more. A checkpoint of an older version, which lacks the test lumisections, would need them."""
    copy = copied(archive, tmp_path)
    shutil.copytree(unbroken, tmp_path / "live")
    for chunk in (copy.path / "chunks").iterdir():
        chunk.write_bytes(b"")
    learner = Learner(Archive.open(copy.path), tmp_path / "live", SETTINGS).open()
    scores = learner.evaluator.score(learner.strategy)
    assert learner.learnt == 4
    np.testing.assert_array_equal(scores.log_probability.astype(np.float32), stored_bits(unbroken)[2])
    learner.close()
    found = checkpoint.load_newest(tmp_path / "live" / "checkpoints")
    assert found is not None
    copy.untag("")  # a removed name is never taken again: that the snapshot is not held is no reason not to go on
    Learner(Archive.open(copy.path), tmp_path / "live", SETTINGS).open().close()
    older = {name: array for name, array in found[1].items() if not name.startswith("judged.")}
    assert len(older) < len(found[1])
    checkpoint.save(tmp_path / "live" / "checkpoints", found[0], older)
    learner = Learner(archive, tmp_path / "live", SETTINGS).open()
    np.testing.assert_array_equal(learner.evaluator.score(learner.strategy).log_probability, scores.log_probability)
    learner.close()


def test_a_replay_that_is_refused_leaves_the_last_one(archive: Archive, tmp_path: Path) -> None:
    replay(archive, tmp_path, SETTINGS)
    before = {path: path.read_bytes() for path in (tmp_path / "replay-gain_map-3").rglob("*") if path.is_file()}
    other = simulated_archive(tmp_path / "other", seed=2, runs=2)
    learn_all(other, tmp_path / "foreign")
    with pytest.raises(StateError, match="no snapshot"):
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
    ArchiveWriter(late).append("late", 0, rows(late, run, range(199, 211), 0, source="moderate"), 0, 12)
    learner = Learner(late.refresh(), tmp_path / "early", SETTINGS).open()
    learner.follow(lambda: False, once=True)
    learner.close()
    status = json.loads((tmp_path / "early" / "status.json").read_text())
    assert status["late_lumisections"] == {str(run): 10}
    assert status["revised_lumisections"] == {str(run): 2}
    replay(late.refresh(), tmp_path, SETTINGS, ledger=tmp_path / "early" / "ledger.jsonl")
    assert_same_bits(tmp_path / "early", tmp_path / "replay-gain_map-3")


def test_a_run_whose_lumisections_came_late_is_told_and_learnt_again(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    """Both of its experiences stand for it, so accuracy on it does not fall; its ledger replays to the same bits."""
    shutil.copytree(unbroken, tmp_path / "live")
    copy = copied(archive, tmp_path)
    run = copy.runs()[0].run
    later = file_late(copy)
    assert learner_status(later, tmp_path)["live"]["late_lumisections"] == {str(run): 10}
    with Learner(later, tmp_path / "live", SETTINGS) as learner:
        for other, says in ((copy.runs()[1].run, "nothing of run .* came or changed"), (5, "run 5 has not been learnt yet")):
            with pytest.raises(InputError, match=says):
                learner.again(other)
        learner.again(run)
        learner.follow(lambda: False, once=True)
        with pytest.raises(InputError, match="nothing of run"):
            learner.again(run)
        names = np.array(learner.evaluator.runs)[learner.strategy.scores(read_run(later, run)).argmax(axis=1)]
        assert np.mean(names == run) > 0.8
    assert learner_status(later, tmp_path)["live"]["late_lumisections"] == {}
    *_, before, line = (json.loads(text) for text in (tmp_path / "live" / "history.jsonl").read_text().splitlines())
    assert line["run"] == run and line["before"] is None and line["experience"] == 4
    for figure in ("accuracy", "auc", "auc_fixed"):
        assert line[figure][0] == line[figure][4]
        assert line[figure] == pytest.approx([*before[figure], before[figure][0]], abs=0.15)
    replay(later, tmp_path, SETTINGS, ledger=tmp_path / "live" / "ledger.jsonl")
    assert_same_bits(tmp_path / "live", tmp_path / "replay-gain_map-3")
    learn_all(later, tmp_path / "live")
    record = next(record for record in read_records(later, tmp_path) if record.name == "live")
    assert len(record.tested) == 4 and record.tested.all()
    assert [curve.auc for curve in rocs(record)] == pytest.approx([*before["auc"], before["auc"][0]], abs=0.15)
    flags = Flagger(later, tmp_path / "live").flags(run, 0.01, 0.05)
    assert all(len(set(three)) == 3 for three in flags.top.tolist())
    assert np.mean(flags.top[:, 0] == run) > 0.8
    assert record.runs == [line["run"] for line in map(json.loads, (tmp_path / "live" / "history.jsonl").open())]


def read_run(archive: Archive, run: int) -> Maps:
    return read_experience(archive, describe(archive, run, 0)).part(Part.TEST)


def test_a_run_of_20_is_learnt_and_a_run_of_3_is_left_out_with_the_reason(archive: Archive, tmp_path: Path) -> None:
    copy = tmp_path / "A"
    shutil.copytree(archive.path, copy)
    known = archive.run(archive.runs()[0].run)["occupancy"].values[:, 0]
    known[:, 33:, :12] = np.floor(0.7 * known[:, 33:, :12])  # three readout boxes on one side
    for run, size in ((999998, 3), (999999, 20)):
        path = write_run(tmp_path, run, known[:size], sidecars=False)
        import_files([path], lambda: Archive.open(copy), dtype=np.dtype("float32"), depths=1)
    found = replay(Archive.open(copy), tmp_path, SETTINGS)
    assert found["left_out"] == {"999998": "too short: no lumisection for validation, test"}
    assert found["runs"][-1] == 999999 and 999998 not in found["runs"]
    *long, short = found["by_run"]
    assert short["test_lumisections"] == 4 and short["accuracy"] == 1.0, "its channels are far from those of the others"
    assert short["low"] < 0.6, "four lumisections prove no more"
    assert found["short_runs"] == 1
    right = sum(one["accuracy"] * one["test_lumisections"] for one in found["by_run"])
    total = 4 + sum(one["test_lumisections"] for one in long)
    assert found["average_accuracy_by_lumisection"] == pytest.approx(right / total)
    lines = (tmp_path / "replay-gain_map-3" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line).get("split") for line in lines] == [None] * len(long) + ["short", "short"]
    again = replay(Archive.open(copy), tmp_path / "b", SETTINGS, ledger=tmp_path / "replay-gain_map-3" / "ledger.jsonl")
    assert again["accuracy_matrix"] == found["accuracy_matrix"]


def test_a_first_run_needs_20_lumisections_for_training_and_50_where_they_do_not_show_the_law(tmp_path: Path) -> None:
    for run, size in ((1, 30), (2, 60), (3, 100), (4, 60)):
        path = write_run(tmp_path, run, counts(run, size))
        import_files([path], lambda: Archive.open_or_create(tmp_path / "A"), dtype=np.dtype("float32"), depths=1)
    found = replay(Archive.open(tmp_path / "A"), tmp_path, SETTINGS)
    assert found["runs"] == [3, 4]
    assert "cannot be the first run: 17 lumisections for train" in found["left_out"]["1"]
    assert "33 lumisections for train do not show whether counts follow the law" in found["left_out"]["2"]


def test_an_open_run_waits_until_it_is_stopped_or_idle(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 5, range(1, 201), 0), 0, 200)
    patient = Learner(archive.refresh(), tmp_path / "patient", SETTINGS).open()
    patient.follow(lambda: False, once=True)
    assert patient.learnt == 0
    patient.close()
    assert json.loads((tmp_path / "patient" / "status.json").read_text())["open_runs"] == 1
    hasty = Learner(archive.refresh(), tmp_path / "hasty", LearnerSettings(strategy="gain_map", idle_s=1e-9)).open()
    hasty.follow(lambda: False, once=True)
    assert hasty.learnt == 1
    hasty.close()


def test_a_pause_of_the_service_is_no_silence_of_the_detector(tmp_path: Path) -> None:
    """The run's last row is older than idle_s, but the learner and ingest have only just started again."""
    archive = Archive.create(tmp_path / "A")
    ArchiveWriter(archive).append("f", 0, rows(archive, 5, range(1, 201), 0), 0, 200)
    last = archive.refresh().runs()[0].last_committed_ns
    while time.time_ns() - last < 1_100_000_000:
        pass
    looks: list[int] = []
    back = Learner(archive.refresh(), tmp_path / "back", LearnerSettings(strategy="gain_map", idle_s=1.0)).open()
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
            Learner(archive, tmp_path / "live", settings).open()
    assert before == {path: path.read_bytes() for path in (tmp_path / "live").rglob("*") if path.is_file()}


def test_one_learner_at_a_time(archive: Archive, tmp_path: Path) -> None:
    first = Learner(archive, tmp_path / "live", SETTINGS).open()
    with pytest.raises(StateError, match="in use by another learner"):
        Learner(archive, tmp_path / "live", SETTINGS).open()
    first.close()
    Learner(archive, tmp_path / "live", SETTINGS).open().close()


def test_a_damaged_checkpoint_is_refused(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "live")
    arrays = tmp_path / "live" / "checkpoints" / "000003" / "arrays.safetensors"
    damaged = bytearray(arrays.read_bytes())
    damaged[-1] ^= 1
    arrays.write_bytes(damaged)
    with pytest.raises(StateError, match=r"damaged \(SHA-256 differs\)"):
        Learner(archive, tmp_path / "live", SETTINGS).open()
    shutil.rmtree(arrays.parent)  # as the message says
    learn_all(archive, tmp_path / "live")
    assert_same_bits(tmp_path / "live", unbroken)


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
    with pytest.raises(InputError, match="a replay needs two"):
        replay(archive.refresh(), tmp_path, SETTINGS)
