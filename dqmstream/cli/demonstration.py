"""The demonstration: simulated runs through everything that a real one would go through, and a report at the end."""

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
"""Strategies that are replayed beside the live learner."""

LONGEST = "joint"
"""The one of them that trains longest: it does not wait for the live learner to end."""

IDLE_S = 2.0


def run_demo(out: Path, stream: str, seed: int, runs: int, lumisections: int, bootstrap: str | None) -> dict[str, Any]:
    """Simulate, import, stream, learn, replay, report. Everything lies under out, which is made anew.

    bootstrap: a Kafka broker to stream through; None: an in-process feed takes its place, all else is the same.
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
    """The same runs, in the order and at the snapshots of the live ledger, by the strategies to compare with.

    Each in a process of its own, two at a time: they share nothing, and each of them keeps to one thread. All are forked from
    one process that has imported PyTorch and Avalanche, which takes longer than a training, while the runs were simulated.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        """settings: those of the live learner. Starts the import, and returns at once."""
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
        """Start those of them that have not been started; the live ledger must hold all runs."""
        for name in names:
            if name not in self._running:
                self._running[name] = self._pool.submit(_replay, self._settings, name, self._ledger)

    def knows(self, runs: int) -> bool:
        """Whether the live ledger holds so many runs, so that their order and snapshots are settled."""
        return self._ledger.exists() and len(read_ledger(self._ledger)) == runs

    def results(self) -> dict[str, dict[str, Any]]:
        """Start what has not been started, wait for all, and return what each learnt."""
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
