"""What each command does: settings in, a result that can be printed as JSON out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dqmstream.errors import ArchiveError, InputError
from dqmstream.learners.evaluation.history import prequential_results, read_history, results
from dqmstream.learners.registry import recipe_of, resolve
from dqmstream.learners.stream.state_folder import check_identity
from dqmstream.lumisection import LUMISECTION_S, Geometry
from dqmstream.service.consume import Consumed, consume, default_group
from dqmstream.service.learner_process import die_with_parent
from dqmstream.service.stopping import stop_on_signals
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive
from dqmstream.streaming.batching import IngestCounts

if TYPE_CHECKING:
    from dqmstream.learners.stream.learner import LearnerSettings

log = structlog.get_logger("dqmstream.service.commands")


def open_or_create(settings: Settings) -> Archive:
    """The archive that the settings name, made from them where it is missing."""
    return Archive.open_or_create(
        settings.need("archive"),
        geometry=Geometry(settings.depths) if settings.depths else None,
        dtype=settings.dtype,
        source=settings.source,
    )


def publish_runs(
    settings: Settings,
    runs: list[int] | None,
    rate: float | None,
    realtime: bool,
    partitions: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Publish archived runs in the order of arrival; partitions: make the topic with so many, None: it stands already."""
    from dqmstream.streaming import kafka
    from dqmstream.streaming.publisher import publish

    archive = Archive.open(settings.need("archive"))
    bootstrap, topic = settings.need("bootstrap"), settings.need("topic")
    known = {summary.run: summary.lumisections for summary in archive.runs()}
    chosen = runs or list(known)
    if unknown := [run for run in chosen if run not in known]:
        raise ArchiveError(f"{archive.path} holds no run {unknown[0]}; it holds {_listed(list(known))}")
    if partitions is not None:
        kafka.create_topic(bootstrap, topic, partitions)
    else:
        kafka.check_topic(bootstrap, topic)
    total = sum(known[run] for run in chosen)
    sender = kafka.KafkaSender(bootstrap, topic)
    try:
        interval = LUMISECTION_S if realtime else 1 / rate if rate else 0.0
        sent = publish(archive, sender, chosen, interval_s=interval, progress=lambda done: progress(done, total))
    finally:
        sender.close()
    return {"topic": topic, "runs": chosen, "lumisections": sent}


def consume_topic(
    settings: Settings,
    *,
    learn: bool,
    until_idle_s: float | None,
    progress: Callable[[IngestCounts, dict[str, Any]], None],
) -> dict[str, Any]:
    """The service on a Kafka topic, until SIGTERM or SIGINT. What can be refused is refused before the archive is made."""
    from dqmstream.streaming import kafka

    bootstrap, topic = settings.need("bootstrap"), settings.need("topic")
    kafka.check_topic(bootstrap, topic)
    kafka.check_codecs(bootstrap, topic)
    dead_letters = kafka.KafkaDeadLetters(bootstrap, settings.dead_letter_topic or f"{topic}.deadletter")
    archive = open_or_create(settings)
    if learn:
        _check_learner(archive, settings)
    own_name = default_group(archive)
    if settings.group is not None:
        kafka.warn_of_others(bootstrap, settings.group, own_name)
    feed = kafka.KafkaFeed(
        bootstrap,
        topic,
        settings.group or own_name,
        instance=settings.instance,
        client_id=own_name,
        session_timeout_ms=settings.session_timeout_ms,
        accept_gap=settings.accept_gap,
    )
    with stop_on_signals() as stop:
        done = consume(
            archive, feed, dead_letters, settings,
            topic=topic, learn=learn, until_idle_s=until_idle_s, stop=stop, progress=progress,
        )  # fmt: skip
    return consumed_result(archive, settings, done, learn)


def consumed_result(archive: Archive, settings: Settings, done: Consumed, learn: bool) -> dict[str, Any]:
    """What `consume --json` prints. snapshot and next_offsets are null where the disk did not take all that was read."""
    if done.waiting:  # the disk hangs: nothing is read from it
        known = {"snapshot": None, "next_offsets": None, "learner": None}
        return {"archive": str(archive.path), "archive_id": archive.archive_id, **done.as_json(), **known}
    archive = archive.refresh()
    history = settings.state_path / settings.name / "history.jsonl"
    lines = read_history(history) if learn and history.exists() else []
    learner = {
        "name": settings.name,
        "strategy": resolve(settings.strategy),
        **results(lines),
        "prequential": prequential_results(history.parent / "windows.jsonl"),
    }
    return {
        "archive": str(archive.path),
        "archive_id": archive.archive_id,
        "group": settings.group or default_group(archive),
        "snapshot": archive.snapshot,
        "next_offsets": {
            feed: {str(partition): following for partition, (_, following) in sorted(partitions.items())}
            for feed, partitions in archive.offsets().items()
        },
        **done.as_json(),
        "learner": learner if lines else None,
    }


def _check_recipe(settings: Settings) -> None:
    """Raise InputError for changes that no recipe can take; say so where the strategy has none that they could concern."""
    if recipe_of(settings.strategy, settings.recipe) is None and settings.recipe:
        log.warning(
            "the strategy has no recipe: these change nothing", strategy=settings.strategy, given=sorted(settings.recipe)
        )


def learn_archive(settings: Settings, *, follow: bool, parent: int | None, again: Sequence[int] = ()) -> dict[str, Any]:
    """The learner alone. parent: process id of the service; when that process is gone the learner ends.

    again: runs that are learnt once more, as the archive holds them now.
    """
    archive = Archive.open(settings.need("archive"))
    _check_recipe(settings)
    from dqmstream.learners.stream.learner import Learner

    if parent is not None:
        die_with_parent(parent)

    with Learner(archive, settings.state_path / settings.name, learner_settings(settings)) as learner:
        for run in dict.fromkeys(again):
            learner.again(run)
        with stop_on_signals() as stop:
            learner.follow(stop.is_set, wait=stop.wait, once=not follow)
        return learner.results()


def replay_archive(
    settings: Settings, *, ledger: Path | None, resume: bool, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """The learner over archived runs."""
    archive = Archive.open(settings.need("archive"))
    _check_recipe(settings)
    from dqmstream.learners.stream.replay import replay

    return replay(archive, settings.state_path, learner_settings(settings), ledger=ledger, resume=resume, progress=progress)


def learner_settings(settings: Settings) -> LearnerSettings:
    """The settings that concern the learner."""
    from dqmstream.learners.stream.learner import LearnerSettings

    if settings.label_delay is not None and not settings.window:
        raise InputError("--label-delay is for a learner that takes windows: give --window too")
    names: tuple[str, ...] = (
        "strategy",
        "recipe",
        "reference",
        "seed",
        "memory_bytes",
        "idle_s",
        "evaluation_samples",
        "watch_samples",
        "window",
        "threads",
        "device",
    )
    if settings.label_delay is not None:
        names = (*names, "label_delay")
    return LearnerSettings(**{name: getattr(settings, name) for name in names})


def _check_learner(archive: Archive, settings: Settings) -> None:
    """Refuse a state of another learner before anything is filed."""
    from dqmstream.learners.stream.learner import identity

    check_identity(settings.state_path / settings.name, identity(archive, learner_settings(settings)))


def _listed(runs: list[int]) -> str:
    if not runs:
        raise InputError("the archive holds no run: import or consume some first")
    return ", ".join(map(str, runs[:5])) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
