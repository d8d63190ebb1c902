"""The state folder: one process holds it, and asking whether one does changes nothing."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dqmstream.errors import StateError, StateInUseError
from dqmstream.learners.stream.state_folder import Identity, StateFolder, is_running

IDENTITY = Identity("gain_map", 0, 1000, 100, "archive")


def ask_on(folder: Path, asked: Event, end: Event) -> None:
    while not end.is_set():
        is_running(folder)
        asked.set()


def test_a_start_never_fails_because_somebody_asks_whether_a_learner_runs(tmp_path: Path) -> None:
    """When asking took the lock, 1288 of 16 741 starts failed."""
    StateFolder(tmp_path / "live", IDENTITY).close()
    context = multiprocessing.get_context("fork")
    asked, end = context.Event(), context.Event()
    asker = context.Process(target=ask_on, args=(tmp_path / "live", asked, end))
    asker.start()
    try:
        assert asked.wait(60)
        for _ in range(2000):
            StateFolder(tmp_path / "live", IDENTITY).close()
    finally:
        end.set()
        asker.join()


def test_a_folder_is_held_from_its_start_to_its_close(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "live"), "a folder that is not there"
    folder = StateFolder(tmp_path / "live", IDENTITY)
    assert is_running(tmp_path / "live")
    with pytest.raises(StateInUseError, match="in use by another learner"):
        StateFolder(tmp_path / "live", IDENTITY)
    assert is_running(tmp_path / "live"), "a start that was refused has let go of nothing"
    folder.close()
    assert not is_running(tmp_path / "live")


def test_a_start_with_other_flags_is_refused_without_taking_the_folder(tmp_path: Path) -> None:
    """Otherwise a correct start at the same moment would fail."""
    held = StateFolder(tmp_path / "live", IDENTITY)
    with pytest.raises(StateError, match="belongs to a learner with strategy gain_map") as refused:
        StateFolder(tmp_path / "live", Identity("slda", 0, 1000, 100, "archive"))
    assert not isinstance(refused.value, StateInUseError)
    held.close()
