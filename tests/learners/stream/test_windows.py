"""Windows: predicted before they are learnt, without effect once the run is complete, and the same bits after any kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.report.report import write_report
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import read_ledger
from dqmstream.learners.stream.replay import replay
from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from tests.learners.stream.test_learner import assert_same_bits
from tests.maps import rows
from tests.runs import simulated_archive

PLAIN = LearnerSettings(strategy="gain_map", seed=3)
SETTINGS = replace(PLAIN, window=40)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("runs"), runs=3)


@pytest.fixture(scope="module")
def unbroken(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a replay by windows."""
    state = tmp_path_factory.mktemp("unbroken")
    replay(archive, state, SETTINGS)
    return state / "replay-gain_map-3"


def windows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "windows.jsonl").read_text().splitlines()]


def assert_same_windows(one: Path, other: Path) -> None:
    assert windows(one) == windows(other)
    assert_same_bits(one, other)


class Death(BaseException):
    pass


def test_windows_are_named_before_they_teach(archive: Archive, unbroken: Path) -> None:
    first, second, third = (summary.run for summary in archive.runs())
    lines = windows(unbroken)
    assert [(line["run"], line["of_run"]) for line in lines] == [(run, k) for run in (second, third) for k in range(5)]
    assert [line["known"] for line in lines] == [False, False, True, True, True] * 2, "a label is a window late"
    assert [line["classes"] for line in lines] == [1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert lines[0]["named"] == [[first, 40]]
    assert [(line["first"], line["last"]) for line in lines[:2]] == [(1, 40), (41, 80)]
    assert all(line["right"] == 0 for line in lines if not line["known"])
    assert sum(line["right"] for line in lines if line["known"]) > 0.8 * 240, "a run is known by its first windows"
    right = np.cumsum([line["right"] for line in lines])
    assert [line["cumulative"] for line in lines] == pytest.approx(right / (40 * np.arange(1, 11)))


def test_when_a_run_is_complete_its_windows_have_changed_nothing(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    plain = replay(archive, tmp_path, PLAIN)
    assert plain["prequential"] is None
    assert_same_bits(tmp_path / "replay-gain_map-3", unbroken)


def test_a_network_learns_by_windows_and_nothing_of_them_is_left(archive: Archive, tmp_path: Path) -> None:
    recipe = {"dim": 16, "depth": 1, "heads": 2, "experts": 2, "steps": 3, "batch": 16}
    settings = LearnerSettings(strategy="hybrid", recipe=recipe, seed=3, window=80)
    found = replay(archive, tmp_path / "windows", settings)["prequential"]
    assert found["windows"] == 2 * 3 and 0 < found["known"] < 1
    assert found["accuracy_known"] > 0.5, "taught by 80 lumisections of the run, or by more"
    replay(archive, tmp_path / "plain", replace(settings, window=0))
    assert_same_bits(tmp_path / "plain" / "replay-hybrid-3", tmp_path / "windows" / "replay-hybrid-3")


def test_no_change_and_guessing_stand_beside(archive: Archive, tmp_path: Path) -> None:
    found = replay(archive, tmp_path, SETTINGS)["prequential"]
    assert found["windows"] == len(found["by_window"]) == 10
    assert found["known"] == found["no_change"] == pytest.approx(6 / 10), (
        "runs do not overlap: the last label is right when known"
    )
    assert found["guessing"] == pytest.approx((3 / 2 + 3 / 3) / 10)
    assert found["accuracy"] == pytest.approx(found["accuracy_known"] * found["known"])


@pytest.mark.parametrize("delay", [0, 3, 100])
def test_labels_come_when_they_are_said_to_and_at_the_end_of_the_run_at_last(
    archive: Archive, tmp_path: Path, delay: int
) -> None:
    replay(archive, tmp_path, replace(SETTINGS, label_delay=delay))
    lines = windows(tmp_path / "replay-gain_map-3")
    unknown = min(delay + 1, 5)
    assert [line["known"] for line in lines] == ([False] * unknown + [True] * (5 - unknown)) * 2


@pytest.mark.parametrize("at", [1, 4, 6, 7, 12])
def test_a_learner_that_dies_at_any_checkpoint_resumes_to_the_same_bits(
    archive: Archive, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """There are 13 checkpoints: a run, then two runs with five windows each. History and windows.jsonl are a line ahead."""
    saved = 0
    real_save = checkpoint.save

    def save(folder: Path, meta: checkpoint.CheckpointMeta, arrays: dict[str, np.ndarray]) -> None:
        nonlocal saved
        if saved == at:
            raise Death
        saved += 1
        real_save(folder, meta, arrays)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Death):
        replay(archive, tmp_path, SETTINGS)
    monkeypatch.undo()
    replay(archive, tmp_path, SETTINGS, resume=True)
    assert_same_windows(unbroken, tmp_path / "replay-gain_map-3")


def test_a_run_is_learnt_from_as_it_is_filed_and_its_ledger_replays_to_the_same_bits(tmp_path: Path) -> None:
    """A run of 200; a run that is filed in parts, with four revised lumisections; and one that is too short."""
    archive = Archive.create(tmp_path / "A")
    learner = Learner(archive, tmp_path / "live", SETTINGS).open()
    writer, at = ArchiveWriter(archive), 0
    come: list[int] = []
    for run, numbers in (
        (5, range(1, 201)), (6, range(1, 51)), (6, range(51, 79)), (6, range(75, 131)), (6, range(131, 191)), (7, range(1, 4)),
        (8, range(1, 2)),
    ):  # fmt: skip
        entries = rows(archive, run, numbers, at)
        writer.append("f", 0, entries, at, at + len(entries))
        at += len(entries)
        learner.archive = archive.refresh()
        learner.follow(lambda: False, once=True)
        come.append(sum(line.window is not None for line in learner.ledger.lines))
    learner.close()
    assert come == [0, 1, 1, 3, 4, 5, 6], "190 are four windows and a rest; a run of 3 is a rest alone, the last one is open"
    lines = windows(tmp_path / "live")
    assert [line["lumisections"] for line in lines] == [40, 40, 40, 40, 30, 3]
    ledger = read_ledger(tmp_path / "live" / "ledger.jsonl")
    assert len({line.snapshot for line in ledger if line.run == 6}) > 2
    assert [line.left_out != "" for line in ledger if line.run == 7] == [False, True]
    status = json.loads((tmp_path / "live" / "status.json").read_text())
    assert (status["windows_behind"], status["experiences_behind"], status["open_runs"]) == (0, 0, 1)
    assert status["prequential_accuracy"] == lines[-1]["cumulative"]
    replay(archive.refresh(), tmp_path, SETTINGS, ledger=tmp_path / "live" / "ledger.jsonl")
    assert_same_windows(tmp_path / "live", tmp_path / "replay-gain_map-3")


def test_windows_of_another_size_are_refused(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    ledger = unbroken / "ledger.jsonl"
    with pytest.raises(InputError, match="windows of 40 lumisections, not 30: give --window 40"):
        replay(archive, tmp_path, replace(SETTINGS, window=30), ledger=ledger)
    with pytest.raises(InputError, match="windows of 40 lumisections, not 50"):
        replay(archive, tmp_path, replace(SETTINGS, window=50), ledger=ledger)
    with pytest.raises(StateError, match="window 40, not 0"):
        Learner(archive, unbroken, PLAIN).open()
    with pytest.raises(StateError, match="label_delay 1, not 2"):
        Learner(archive, unbroken, replace(SETTINGS, label_delay=2)).open()
    plain = replay(archive, tmp_path, PLAIN, ledger=ledger)
    assert plain["prequential"] is None, "the runs of a ledger with windows can be learnt without them"
    with pytest.raises(InputError, match="has no windows: leave out --window"):
        replay(archive, tmp_path, SETTINGS, ledger=tmp_path / "replay-gain_map-3" / "ledger.jsonl")


def test_a_file_that_lacks_windows_is_refused(archive: Archive, tmp_path: Path) -> None:
    replay(archive, tmp_path, SETTINGS)
    path = tmp_path / "replay-gain_map-3" / "windows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(StateError, match="has 4 windows, but a checkpoint has counted 10"):
        replay(archive, tmp_path, SETTINGS, resume=True)


def test_the_report_draws_them_and_holds_their_numbers(archive: Archive, unbroken: Path, tmp_path: Path) -> None:
    page = write_report(archive, unbroken.parent, tmp_path / "report")
    picture = "learner-01-replay-gain_map-3-windows.png"
    assert picture in page.read_text()
    assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")
    found = json.loads((page.parent / "results.json").read_text())["learners"]["replay-gain_map-3"]["prequential"]
    assert found["by_window"] == windows(unbroken)
    assert found["accuracy"] == windows(unbroken)[-1]["cumulative"]
