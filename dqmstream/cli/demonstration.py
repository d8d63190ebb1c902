"""The demonstration: simulated runs pass through all stages that real ones do, and a report is written."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import Progress

from dqmstream.cli import output
from dqmstream.errors import InputError
from dqmstream.experiments.simulator import write
from dqmstream.learners.stream.ledger import read_ledger
from dqmstream.service.consume import consume, consume_topic, consumed_result
from dqmstream.service.learn import learner_settings
from dqmstream.service.publish import publish_runs
from dqmstream.service.stopping import stop_on_signals
from dqmstream.settings import Settings, load_settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.import_data import ImportOptions, import_data
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.publisher import messages

MARKER = ".dqmstream-demo"
COMPARED = ("naive", "ewc", "replay", "joint")
"""Strategies that replay the same runs, to compare the live learner with."""

LONGEST = "joint"
"""The strategy that trains longest. It starts before the live learner has finished."""

IDLE_S = 2.0


def run_demo(out: Path, stream: str, seed: int, runs: int, lumisections: int, bootstrap: str | None) -> dict[str, Any]:
    """Simulate, import, stream, learn, replay, report. All files lie in `out`; an older demonstration in it is deleted.

    bootstrap: Kafka broker to stream through; None: an in-process feed is used instead.
    """
    if bootstrap is not None:
        from dqmstream.streaming.kafka import check_broker

        check_broker(bootstrap)
    _make_anew(out)
    settings = load_settings(archive=out / "archive", state=out / "state", bootstrap=bootstrap, topic=_topic(out), seed=seed)
    with output.bars() as progress, _Replays(settings, progress) as replays:
        write(out / "simulated", stream, seed, runs, lumisections, progress=output.bar_callback(progress, "simulate"))
        imported = output.bar_callback(progress, "import")
        published = load_settings(archive=out / "published", bootstrap=bootstrap, topic=_topic(out), seed=seed)
        options = ImportOptions(published.dtype, published.depths, published.source, max_events=published.max_events)
        import_data(published.need("archive"), [out / "simulated"], options, lambda stage, n, total: imported(n, total))
        shown = output.consume_bar(progress, runs * lumisections)

        def show(counts: IngestCounts, learner: dict[str, Any]) -> None:
            shown(counts, learner)
            if replays.knows(runs):
                replays.begin([LONGEST])

        if bootstrap is None:
            live = _consume_in_process(published, settings, show)
        else:
            sent = output.bar_callback(progress, "publish")
            publish_runs(published, None, None, False, 1, sent)
            live = consume_topic(settings, learn=True, until_idle_s=IDLE_S, progress=show)
        if live["learner"] is None:
            raise InputError("the learner learnt nothing; `dqmstream learn --verbose` on the archive says why")
        learners = {f"live ({live['learner']['strategy']})": live["learner"]}
        learners |= replays.results()
        from dqmstream.experiments.report.report import write_report

        drawn = output.bar_callback(progress, "draw the report")
        page = write_report(
            Archive.open(out / "archive"), out / "state", out / "report", progress=lambda _, n, total: drawn(n, total)
        )
    return {"stream": stream, "seed": seed, "consumed": live, "learners": learners, "report": str(page)}


def _make_anew(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise InputError(f"{out} is not empty and no demo wrote it: give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("made by `dqmstream demo`, which may delete this folder\n")


def _topic(out: Path) -> str:
    return "demo-" + "".join(c if c.isalnum() else "-" for c in out.name)


def _consume_in_process(published: Settings, settings: Settings, show: Any) -> dict[str, Any]:
    source = Archive.open(published.need("archive"))
    order = [summary.run for summary in source.runs()]
    feed = InProcessFeed(f"{settings.topic}@in-process", functools.partial(messages, source, order))
    archive = Archive.open_or_create(settings.need("archive"))
    dead_letters = FolderDeadLetters(Path(f"{settings.archive}.deadletters"))
    with stop_on_signals() as stop:
        done = consume(
            archive, feed, dead_letters, settings,
            topic=settings.need("topic"), until_idle_s=IDLE_S, stop=stop, progress=show,
        )  # fmt: skip
    return consumed_result(archive, settings, done, learn=True)


class _Replays:
    """Replays of the runs by other strategies, in the order and at the snapshots of the live ledger.

    Each runs in a process of its own with one thread, two at a time. The processes are forked from one that imports PyTorch and
    Avalanche while the runs are simulated: that import takes longer than a training.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        """Start the import and return at once. settings: those of the live learner."""
        self._settings = settings
        self._ledger = settings.state_path / settings.name / "ledger.jsonl"
        self._shown = {name: output.bar_callback(progress, f"replay {name}") for name in COMPARED}
        self._running: dict[str, Future[dict[str, Any]]] = {}
        multiprocessing.set_forkserver_preload(["dqmstream.learners.stream.replay", "dqmstream.learners.gradient.strategy"])
        multiprocessing.forkserver.ensure_running()
        forks = multiprocessing.get_context("forkserver")
        self._pool = ProcessPoolExecutor(max_workers=2, mp_context=forks, initializer=output.configure_logs)

    def __enter__(self) -> _Replays:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, names: Iterable[str]) -> None:
        """Start those that are not started yet. The live ledger must hold all runs."""
        for name in names:
            if name not in self._running:
                self._running[name] = self._pool.submit(_replay, self._settings, name, self._ledger)

    def knows(self, runs: int) -> bool:
        """Whether the live ledger holds this many runs, so that their order and snapshots are final."""
        return self._ledger.exists() and len(read_ledger(self._ledger)) == runs

    def results(self) -> dict[str, dict[str, Any]]:
        """Start those that are not started yet, wait for all, and return the results of each."""
        self.begin(COMPARED)
        total = len(read_ledger(self._ledger))
        while wait(self._running.values(), timeout=0.5).not_done:
            for name, show in self._shown.items():
                history = self._settings.state_path / f"replay-{name}-{self._settings.seed}" / "history.jsonl"
                show(len(history.read_text().splitlines()) if history.exists() else 0, total)
        for show in self._shown.values():
            show(total, total)
        return {name: self._running[name].result() for name in COMPARED}


def _replay(settings: Settings, strategy: str, ledger: Path) -> dict[str, Any]:
    from dqmstream.learners.stream.replay import replay

    chosen = load_settings(**{**settings.model_dump(), "strategy": strategy})
    return replay(Archive.open(settings.need("archive")), settings.state_path, learner_settings(chosen), ledger=ledger)
