"""Signs of life: work of the learning thread gives one, waiting for a lock gives none, and the end is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dqmstream.learners.stream import heartbeat
from dqmstream.learners.stream.heartbeat import Heartbeat, Sign, error_number, read_sign
from dqmstream.learners.stream.state_folder import Identity, StateFolder, life


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.005)


def beats(folder: Path) -> int:
    sign = read_sign(folder)
    return -1 if sign is None else sign.beats


def until(condition: Callable[[], bool]) -> None:
    """Work until the condition holds; the test's own timeout bounds it."""
    while not condition():
        sum(range(1000))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Processor time of the learning thread at each look of the second thread."""
    seen: list[float] = []
    real = Heartbeat._worked_s

    def look(self: Heartbeat) -> float:
        seen.append(real(self))
        return seen[-1]

    monkeypatch.setattr(Heartbeat, "_worked_s", look)
    yield seen


def test_a_long_training_step_is_a_sign_of_life_without_a_word_of_it(tmp_path: Path) -> None:
    pulse = Heartbeat(tmp_path)
    before = beats(tmp_path)
    until(lambda: beats(tmp_path) > before + 2)
    pulse.close()


def test_a_learning_thread_that_waits_shows_no_sign_of_life_whatever_other_threads_do(
    tmp_path: Path, looks: list[float]
) -> None:
    """The learning thread waits for a lock while this thread works; once it continues, there are signs of life again."""
    made, gate = threading.Event(), threading.Event()

    def learn() -> None:
        pulse = Heartbeat(tmp_path)
        made.set()
        gate.wait()
        before = beats(tmp_path)
        while beats(tmp_path) == before:
            pulse.beat()
            time.sleep(0.001)
        pulse.close()

    thread = threading.Thread(target=learn)
    thread.start()
    made.wait()
    start = len(looks)
    until(lambda: len(looks) > start + 3)
    silent, start, worked_s = beats(tmp_path), len(looks), time.thread_time()
    until(lambda: len(looks) > start + 30 and time.thread_time() > worked_s + 2 * heartbeat.WORK_S)
    assert beats(tmp_path) == silent
    gate.set()
    thread.join()
    assert beats(tmp_path) > silent


def test_how_a_learner_ended_is_left_in_its_folder(tmp_path: Path) -> None:
    identity = Identity("gain_map", 0, 1000, 100, "archive")
    assert life(tmp_path / "live", 60)["condition"] == "not started"
    folder = StateFolder(tmp_path / "live", identity)
    running = life(tmp_path / "live", 60)
    assert (running["running"], running["condition"], running["error"]) == (True, "running", None)
    assert 0 <= running["silent_s"] < 60
    folder.close()
    assert life(tmp_path / "live", 60)["condition"] == "ended"
    StateFolder(tmp_path / "live", identity).close(OSError(28, "No space left on device"))
    failed = life(tmp_path / "live", 60)
    assert (failed["running"], failed["condition"]) == (False, "failed")
    assert failed["error"] == "OSError: [Errno 28] No space left on device"
    sign = read_sign(tmp_path / "live")
    assert sign is not None and sign.error_number == 28


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(28, "No space left on device"), 28),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 28),
        (ValueError("28 channels"), None),
        (MemoryError(), 12),
    ],
)
def test_the_number_of_an_error_is_found_wherever_it_stands(error: Exception, number: int | None) -> None:
    assert error_number(error) == number
    wrapped = RuntimeError("the checkpoint cannot be written")
    wrapped.__cause__ = error
    assert error_number(wrapped) == number


def test_silence_does_not_depend_on_the_time_of_day_and_is_not_told_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path / "live", Identity("gain_map", 0, 1000, 100, "archive"))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    told = life(tmp_path / "live", 60)
    assert (told["condition"], told["silent_s"] < 60) == ("running", True)
    folder.close()
    long_ago = Sign(1, 5, time.monotonic() - 1000.0, heartbeat.boot_id())
    assert long_ago.silent_s == pytest.approx(1000.0, abs=60)
    assert Sign(1, 5, 0.0, "another start").silent_s is None


def test_the_error_is_told_although_the_disk_takes_nothing_more(tmp_path: Path) -> None:
    """The space of the file is allocated from the start, and it is written in place."""
    pulse = Heartbeat(tmp_path)
    place = (tmp_path / "heartbeat").stat()
    assert place.st_blocks * 512 >= heartbeat.SIZE
    pulse.close(RuntimeError("x" * 100_000))
    after = (tmp_path / "heartbeat").stat()
    assert (after.st_ino, after.st_size, after.st_blocks) == (place.st_ino, heartbeat.SIZE, place.st_blocks)
    sign = read_sign(tmp_path)
    assert sign is not None and sign.ended == f"RuntimeError: {'x' * 986}"
