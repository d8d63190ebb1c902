"""The service over an in-process feed: ingest goes on whatever becomes of the learner, and skips nothing."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dqmstream.errors import DataLostError
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.replay import replay
from dqmstream.learners.stream.status import learner_status
from dqmstream.service.consume import Consumed, consume, default_group
from dqmstream.service.learn import learner_settings
from dqmstream.service.stopping import Stop, stop_on_signals
from dqmstream.settings import Settings, load_settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.message import Polled
from dqmstream.streaming.publisher import messages
from tests.learners.stream.test_learner import assert_same_bits
from tests.maps import as_sent, check_tiling, rows
from tests.runs import simulated_archive

Progress = Callable[[IngestCounts, dict[str, Any]], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("source"), runs=3)


def settings_for(folder: Path, **changes: Any) -> Settings:
    return load_settings(archive=folder / "A", strategy="gain_map", seed=3, **changes)


def run_service(
    source: Archive, settings: Settings, *, feed: InProcessFeed | None = None, until_idle_s: float | None = 0.5, **flags: Any
) -> Consumed:
    archive = Archive.open_or_create(settings.need("archive"))
    letters = FolderDeadLetters(archive.path.with_name("letters"))
    return consume(archive, feed or feed_of(source), letters, settings, topic="runs", until_idle_s=until_idle_s, **flags)


class PatientFeed(InProcessFeed):
    """Waits where nothing comes, as a broker's feed does: a service that asks on and on takes the learner's processor."""

    gate_is_shut: Callable[[], bool] = staticmethod(lambda: False)
    """While it holds, nothing comes."""

    def poll(self, timeout_s: float) -> Polled:
        polled = Polled() if self.gate_is_shut() else super().poll(timeout_s)
        if polled == Polled():
            time.sleep(min(timeout_s, 0.05))
        return polled


def feed_of(source: Archive) -> PatientFeed:
    order = [summary.run for summary in source.runs()]
    return PatientFeed("runs@in-process", functools.partial(messages, source, order))


def test_every_run_is_filed_and_learnt(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    done = run_service(source, settings)
    assert (done.counts.rows, done.counts.dead, done.learner_exit_code) == (600, 0, None)
    head = Archive.open(tmp_path / "A")
    for summary in source.runs():
        assert as_sent(head, summary.run).equals(as_sent(source, summary.run))
    check_tiling(head)
    live = settings.state_path / "live"
    assert len((live / "history.jsonl").read_text().splitlines()) == 3
    # the same runs offline, by the live ledger: the same bits
    replay(head, tmp_path, LearnerSettings(strategy="gain_map", seed=3), ledger=live / "ledger.jsonl")
    assert_same_bits(live, tmp_path / "replay-gain_map-3")


def test_windows_of_the_service_replay_from_its_ledger_to_the_same_bits(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, window=80)
    run_service(source, settings)
    live = settings.state_path / "live"
    windows = (live / "windows.jsonl").read_text().splitlines()
    assert len(windows) == 2 * 3, "two runs of 200, the first has none"
    offline = LearnerSettings(strategy="gain_map", seed=3, window=80)
    replay(Archive.open(tmp_path / "A"), tmp_path, offline, ledger=live / "ledger.jsonl")
    assert (tmp_path / "replay-gain_map-3" / "windows.jsonl").read_text().splitlines() == windows
    assert_same_bits(live, tmp_path / "replay-gain_map-3")


def test_a_learner_that_is_killed_is_started_again_and_skips_nothing(source: Archive, tmp_path: Path) -> None:
    """It is killed when it has learnt two runs; the third is sent only then."""
    settings = settings_for(tmp_path)
    killed: list[int] = []
    stop = Stop()

    def kill_once(counts: IngestCounts, learner: dict[str, Any]) -> None:
        learnt = learner.get("experiences_learnt", 0)
        if learnt == 2 and not killed:
            os.kill(learner["pid"], signal.SIGKILL)
            killed.append(learner["pid"])
        if learnt == 3:
            stop.set()

    feed = PatientFeed("runs@in-process", feed_of(source).messages, max_records=101)
    feed.gate_is_shut = lambda: feed._position >= 404 and not killed
    done = run_service(source, settings, feed=feed, until_idle_s=None, stop=stop, progress=kill_once)
    status = json.loads((settings.state_path / "live" / "status.json").read_text())
    assert killed and status["pid"] != killed[0]
    assert (status["experiences_learnt"], status["experiences_behind"]) == (3, 0)
    assert (done.counts.rows, done.learner_exit_code) == (600, None)


def test_a_learner_that_can_never_start_is_given_up_and_ingest_goes_on(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    folder = settings.state_path / "live"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"strategy": "another"}')
    done = run_service(source, settings)
    assert (done.counts.rows, done.learner_exit_code) == (600, 7)


def test_a_state_that_another_process_holds_is_waited_for(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill of the service, whose learner may still be at work: the new one waits its turn, and learns."""
    monkeypatch.setattr("dqmstream.service.learner_process.IN_USE_RETRY_S", 0.1)
    settings = settings_for(tmp_path)
    archive = Archive.open_or_create(settings.need("archive"))
    orphan = Learner(archive, settings.state_path / "live", learner_settings(settings)).open()
    stop = Stop()
    filed_while_held: list[int] = []

    def let_go(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if counts.rows == 600 and not filed_while_held:
            filed_while_held.append(counts.rows)
            orphan.close()
        if learner.get("experiences_learnt") == 3:
            stop.set()

    done = run_service(source, settings, until_idle_s=None, stop=stop, progress=let_go)
    assert (filed_while_held, done.learner_exit_code) == ([600], None)


def test_status_tells_of_a_dead_learner_what_it_is_behind(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    run_service(source, settings)
    head = Archive.open(tmp_path / "A")
    live = learner_status(head, settings.state_path)["live"]
    assert (live["running"], live["experiences_learnt"], live["experiences_behind"]) == (False, 3, 0)
    ArchiveWriter(head).append("f", 0, [*rows(head, 9, range(1, 4), 0), Control(3, 4, ControlKind.STOP, 9)], 0, 4)
    assert learner_status(head.refresh(), settings.state_path)["live"]["experiences_behind"] == 1


def test_a_learner_that_keeps_dying_is_given_up_within_a_bound(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the learner's place runs a program that notes that it was started and kills itself."""
    dying = f"import os; open({str(tmp_path / 'starts')!r}, 'a').write('x'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr("dqmstream.service.learner_process._learn_command", lambda *_: [sys.executable, "-c", dying])
    done = run_service(source, settings_for(tmp_path, learner_restarts=1))
    assert (tmp_path / "starts").read_text() == "xx"
    assert (done.counts.rows, done.learner_exit_code) == (600, -signal.SIGKILL)


def test_snapshots_that_nothing_needs_are_dropped_without_any_stop(
    source: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those older than ten minutes at the least, once an hour; here at once, so no learner reads meanwhile. The first fails."""
    monkeypatch.setattr("dqmstream.storage.maintenance.expiry.EVERY_S", 0.1)
    monkeypatch.setattr("dqmstream.storage.maintenance.expiry.RETRY_S", 0.01)
    failures = [OSError(5, "Input/output error")]
    real = Archive.expire

    def expire(archive: Archive, keep_s: float) -> int:
        if failures:
            raise failures.pop()
        return real(archive, 0.0)

    monkeypatch.setattr(Archive, "expire", expire)
    held = [message for message in messages(source, [s.run for s in source.runs()]) if message.value[4:8] != b"6s4t"]  # type: ignore[index]
    sent = [replace(message, offset=offset) for offset, message in enumerate(held)]
    feed = InProcessFeed("runs@in-process", lambda: iter(sent), max_records=10)
    done = run_service(source, settings_for(tmp_path, max_rows=10), feed=feed, learn=False)
    assert done.counts.commits > 50 and done.counts.stops == 0 and not failures
    assert len(list((tmp_path / "A" / "snapshots").iterdir())) < 25
    head = Archive.open(tmp_path / "A")
    assert [s.lumisections for s in head.runs()] == [200, 200, 200]
    check_tiling(head)


def test_without_a_learner_nothing_is_learnt(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    assert run_service(source, settings, learn=False).counts.rows == 600
    assert not settings.state_path.exists()


def test_a_worker_that_holds_no_partition_says_so(source: Archive, tmp_path: Path) -> None:
    """As in a group that has more workers than partitions; it would end 0 with nothing filed."""

    class Unassigned(InProcessFeed):
        def poll(self, timeout_s: float) -> Polled:
            self.exhausted = True
            return Polled()

    with capture_logs() as logs:
        done = run_service(source, settings_for(tmp_path), feed=Unassigned("runs@in-process", iter), learn=False)
        held = run_service(source, settings_for(tmp_path / "held"), learn=False)
    assert (done.partitions, done.counts.rows, held.partitions, held.counts.rows) == (0, 0, 1, 600)
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    assert warning["event"].startswith("this worker holds no partition")
    assert warning["group"] == default_group(Archive.open(tmp_path / "A"))


def test_what_was_read_before_the_feed_ended_with_an_error_is_filed(source: Archive, tmp_path: Path) -> None:
    """It may be nowhere else any more, as where the topic was deleted."""

    class Ending(InProcessFeed):
        def poll(self, timeout_s: float) -> Polled:
            if self._position >= 40:
                raise DataLostError("the topic was deleted and made again")
            return super().poll(timeout_s)

    settings = settings_for(tmp_path, flush_s=3600.0)
    feed = Ending("runs@in-process", feed_of(source).messages, max_records=10)
    with pytest.raises(DataLostError, match="made again"):
        run_service(source, settings, feed=feed, learn=False)
    head = Archive.open(tmp_path / "A")
    assert head.next_offset("runs@in-process", 0) == 40
    check_tiling(head)


def test_the_first_signal_asks_and_a_second_finds_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(3600.0)  # is cut short
        assert stop.is_set()
        assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_files_all_that_was_read(source: Archive, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, flush_s=3600.0)
    stop = Stop()

    def stop_soon(counts: IngestCounts, learner: dict[str, Any]) -> None:
        if counts.messages:
            stop.set()

    done = run_service(source, settings, learn=False, stop=stop, progress=stop_soon)
    head = Archive.open(tmp_path / "A")
    assert head.next_offset("runs@in-process", 0) == done.counts.messages > 0
    check_tiling(head)
    run_service(source, settings, learn=False)
    assert [s.lumisections for s in Archive.open(tmp_path / "A").runs()] == [200, 200, 200]
