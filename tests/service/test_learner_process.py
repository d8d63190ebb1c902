"""The learner of the service as a process: one that hangs, fails, or cannot be started costs nothing that is filed."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dqmstream.learners.stream.status import learner_status
from dqmstream.service.learner_process import START_S, Silence
from dqmstream.service.stopping import Stop
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import try_exclusive
from dqmstream.streaming.counts import IngestCounts
from tests.commandline import Command, dqmstream, result
from tests.runs import simulated_archive
from tests.service.test_consume import PatientFeed, feed_of, run_service, settings_for


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("source"), runs=3)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))


def test_a_learner_that_hangs_slows_nothing_is_killed_and_started_again_and_skips_nothing(
    source: Archive, tmp_path: Path
) -> None:
    """It is stopped when it has learnt one run; two more are filed meanwhile, and learnt by the one that is started then."""
    settings = settings_for(tmp_path)
    hung: list[int] = []
    told: list[dict[str, Any]] = []
    stop = Stop()

    def hang(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if learner.get("experiences_learnt") == 1 and not hung:
            os.kill(learner["pid"], signal.SIGSTOP)
            hung.append(learner["pid"])
        if counts.rows == 600 and hung and not told:
            live = learner_status(Archive.open(tmp_path / "A"), settings.state_path, hang_s=1.0)["live"]
            if live["condition"] == "hangs":  # seen before anybody does something about it
                told.append(live)
                settings.learner_hang_s = 1.0
        if told and not Path(f"/proc/{hung[0]}").exists():
            settings.learner_hang_s = 300.0
        if learner.get("experiences_learnt") == 3:
            stop.set()

    feed = PatientFeed("runs@in-process", feed_of(source).messages, max_records=101)
    feed.gate_is_shut = lambda: feed._position >= 202 and not hung
    done = run_service(source, settings, feed=feed, until_idle_s=None, stop=stop, progress=hang)
    assert [(one["running"], one["experiences_behind"]) for one in told] == [(True, 2)]
    status = json.loads((settings.state_path / "live" / "status.json").read_text())
    assert (status["pid"] != hung[0], status["experiences_behind"]) == (True, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(hung[0], 0)
    assert (done.counts.rows, done.learner_exit_code, done.exit_code) == (600, None, 0)


def test_a_learner_that_has_failed_and_not_got_on_since_is_told_by_the_exit_code(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is stopped long before the learner would be given up, as in the first seconds of a full disk."""
    failing = f"import sys; open({str(tmp_path / 'starts')!r}, 'a').write('x'); sys.exit(1)"
    monkeypatch.setattr("dqmstream.service.learner_process._learn_command", lambda *_: [sys.executable, "-c", failing])
    stop = Stop()

    def end(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if counts.rows == 600 and (tmp_path / "starts").exists() and (tmp_path / "starts").read_text() == "xx":
            stop.set()

    done = run_service(source, settings_for(tmp_path), until_idle_s=None, stop=stop, progress=end)
    assert (done.learner_exit_code, done.exit_code, done.learner_error) == (1, 1, "ended with exit code 1")
    assert done.counts.rows == 600


def test_a_learner_on_a_full_disk_is_not_given_up(source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place runs a program that ends as it does there. Somebody may make room; until then it is tried again."""
    folder, starts = tmp_path / "A.state" / "live", tmp_path / "starts"
    folder.mkdir(parents=True)
    full = (
        "import sys; from pathlib import Path; from dqmstream.learners.stream.heartbeat import Heartbeat; "
        f"Heartbeat(Path({str(folder)!r})).close(OSError(28, 'No space left on device')); "
        f"open({str(starts)!r}, 'a').write('x'); sys.exit(5)"
    )
    monkeypatch.setattr("dqmstream.service.learner_process._learn_command", lambda *_: [sys.executable, "-c", full])
    stop = Stop()

    def end(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if counts.rows == 600 and starts.exists() and starts.read_text() == "xx":
            stop.set()

    settings = settings_for(tmp_path, learner_restarts=0)
    done = run_service(source, settings, until_idle_s=None, stop=stop, progress=end)
    assert (done.counts.rows, done.exit_code) == (600, 5)
    assert done.learner_error == "OSError: [Errno 28] No space left on device"
    starts.unlink()
    done = run_service(source, settings)
    assert (starts.read_text(), done.exit_code) == ("x", 5), "with --until-idle the bound holds"


def test_a_learner_that_cannot_be_forked_is_tried_again_and_ingest_goes_on(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = f"open({str(tmp_path / 'started')!r}, 'w').close(); import time; time.sleep(3600)"
    monkeypatch.setattr("dqmstream.service.learner_process._learn_command", lambda *_: [sys.executable, "-c", started])
    real, refused = subprocess.Popen, []

    def full(*arguments: Any, **flags: Any) -> subprocess.Popen[bytes]:
        if not refused:
            refused.append(True)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real(*arguments, **flags)

    monkeypatch.setattr(subprocess, "Popen", full)
    stop = Stop()

    def end(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if counts.rows == 600 and (tmp_path / "started").exists():
            stop.set()

    done = run_service(source, settings_for(tmp_path), until_idle_s=None, stop=stop, progress=end)
    assert (done.counts.rows, refused) == (600, [True])


def test_a_learner_that_can_never_be_forked_ends_only_what_waits_for_it(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --until-idle the service ends when all is filed, and says that nothing was learnt."""

    def full(*arguments: Any, **flags: Any) -> subprocess.Popen[bytes]:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", full)
    done = run_service(source, settings_for(tmp_path, learner_restarts=0))
    assert (done.counts.rows, done.exit_code) == (600, 7)
    assert done.learner_error == "the learner cannot be started: Resource temporarily unavailable"


def test_a_disk_that_takes_nothing_more_from_the_learner_is_told_by_status_and_exit_code(
    source: Archive, tmp_path: Path
) -> None:
    """The kernel lets the learner write no file of more than 16 kB, so no checkpoint."""
    flags = ("--archive", source.path, "--state", tmp_path / "state")
    command = Command("learn", *flags, "--strategy", "gain_map", before=limit_files)
    assert command.wait(120) != 0
    (live,) = result("status", *flags)["learners"].values()  # type: ignore[attr-defined]
    assert (live["running"], live["condition"], live["experiences_learnt"]) == (False, "failed", 0), "no checkpoint"
    assert "too large" in live["error"]
    assert "it failed: " in " ".join(dqmstream("status", *flags).stdout.split())


def test_a_learner_of_another_process_that_hangs_is_told_and_not_waited_for_with_until_idle(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not ours to end. This process holds its folder, and no sign of life comes."""
    monkeypatch.setattr("dqmstream.service.learner_process.IN_USE_RETRY_S", 0.1)
    settings = settings_for(tmp_path)
    settings.learner_hang_s = 1.0
    folder = settings.state_path / "live"
    folder.mkdir(parents=True)
    lease = try_exclusive(folder)
    assert lease is not None
    done = run_service(source, settings)
    os.close(lease)
    assert (done.counts.rows, done.exit_code) == (600, 8)
    assert done.learner_error is not None and "another process holds" in done.learner_error


def test_time_in_which_the_service_itself_was_stopped_is_no_silence_of_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that was suspended, or a container that was paused."""
    now = [1000.0]
    monkeypatch.setattr("dqmstream.service.learner_process.time.monotonic", lambda: now[0])
    silence = Silence(tmp_path)
    for passed, silent_s in ((1.0, 1.0), (0.2, 1.0), (1.0, 2.2), (3600.0, 6.2)):
        now[0] += passed
        assert silence.seconds() == pytest.approx(silent_s)
    silence.forget()
    now[0] += 1.0
    assert silence.seconds() == 1.0 - START_S, "a child that was just started has time to import"
