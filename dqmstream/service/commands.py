"""What each command does: settings in, a result that can be printed as JSON out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
from dqmstream.storage.imports.importer import Imported, Taking, import_runs
from dqmstream.storage.labels.filing import file_golden, file_luminosity
from dqmstream.storage.labels.golden import read_golden
from dqmstream.storage.labels.luminosity import read_tables
from dqmstream.storage.labels.trigger_rates import ZERO_BIAS
from dqmstream.storage.labels.versions import label_versions
from dqmstream.storage.layout import Kind
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


@dataclass(frozen=True)
class ImportFlags:
    """What `import` is asked beside the files.

    golden_only: file no lumisection that the golden JSON does not name. hlt_path: the trigger path whose rate gives events.
    """

    run: int | None = None
    interpolated: bool = False
    crop: bool = False
    golden: Path | None = None
    golden_only: bool = False
    luminosity: Sequence[Path] = ()
    hlt_path: str | None = None


def import_data(
    settings: Settings, files: list[Path], flags: ImportFlags, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Import files of lumisections or of images, by what is in them, and labels."""
    from dqmstream.storage.images.archive import import_images
    from dqmstream.storage.images.source import images_among, left_out

    if flags.golden_only and not flags.golden:
        raise InputError("--golden-only needs the golden JSON: give --golden FILE too")
    if flags.hlt_path and not flags.luminosity:
        raise InputError("--hlt-path is for a table of HLT rates: give --lumi FILE too")
    if flags.interpolated and (flags.golden_only or flags.luminosity):
        flag = "golden-only" if flags.golden_only else "lumi"
        raise InputError(
            f"--{flag} goes by the number of a lumisection, and rows that were interpolated have none: "
            f"leave out --{flag} or --interpolated"
        )
    if images := images_among(files):
        _refuse_flags(settings, flags, images[0])
        done = [asdict(file) for file in import_images(images, settings.need("archive"), progress)]
        return {"archive": str(settings.archive), "kind": "images", "files": done, "notes": left_out(files)}
    if not (files or flags.golden or flags.luminosity):
        raise InputError("nothing is given to import: name files, or --golden FILE or --lumi FILE for an archive that stands")
    return {
        "archive": str(settings.need("archive")),
        "kind": "lumisections",
        **_import_lumisections(settings, files, flags, progress),
    }


def _import_lumisections(
    settings: Settings, files: list[Path], flags: ImportFlags, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    path: Path = settings.need("archive")
    golden = read_golden(flags.golden) if flags.golden else None
    tables = read_tables(flags.luminosity, flags.hlt_path or ZERO_BIAS)
    standing = Archive.open(path) if Archive.exists(path) or not files else None
    done: list[Imported] = []
    if files:
        taking = Taking(
            dtype=standing.dtype if standing else np.dtype(settings.dtype or "float32"),
            depths=standing.geometry.depths if standing else settings.depths,
            run=flags.run,
            interpolated=flags.interpolated,
            crop=flags.crop,
            golden=golden if flags.golden_only else None,
            luminosity=tables,
            source=settings.source,
            stored_source=standing.source if standing else "",
            scratch=path.parent if os.access(path.parent, os.W_OK) else None,  # a volume's parent may be read-only
            max_events=settings.max_events,
        )
        done, beside = import_runs(files, lambda: open_or_create(settings), taking, progress)
        tables = [table.for_run(done[0].run) for table in tables] + beside
    archive = Archive.open(path)
    labels = [file_golden(archive, golden)] if golden else []
    labels += [file_luminosity(archive, table) for table in tables]
    notes = [note for table in tables for note in table.notes]
    return {"files": [asdict(file) for file in done], "labels": [asdict(label) for label in labels], "notes": notes}


def _refuse_flags(settings: Settings, flags: ImportFlags, image: Path) -> None:
    given = {name: getattr(settings, name) for name in ("dtype", "depths", "source")}
    given |= {name.replace("_", "-"): value for name, value in vars(flags).items()}
    if named := [name.replace("luminosity", "lumi") for name, value in given.items() if value]:
        raise InputError(f"--{named[0]} is for files of lumisections, and {image} holds images: leave it out")


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


def archive_status(archive: Archive) -> dict[str, Any]:
    """What is in the archive: runs, lumisections, gaps, offsets."""
    offsets = archive.offsets()
    feeds = []
    for feed, partitions in offsets.items():
        for partition, (first, following) in sorted(partitions.items()):
            control = archive.control(feed, partition)
            kinds = control["kind"].values
            spans = control["until"].values - control["offset"].values
            feeds.append(
                {
                    "feed": feed,
                    "partition": partition,
                    "first_offset": first,
                    "next_offset": following,
                    "rows": following - first - int(spans.sum()),
                    **{kind.name.lower(): int(spans[kinds == kind].sum()) for kind in Kind},
                }
            )
    runs = [
        {
            "run": s.run,
            "lumisections": s.lumisections,
            "first": s.first_lumisection,
            "last": s.last_lumisection,
            "missing": s.missing,
            "revisions": s.revisions,
            "duplicates": s.duplicates,
            "complete": s.complete,
        }
        for s in archive.runs()
    ]
    return {
        "archive": str(archive.path),
        "archive_id": archive.archive_id,
        "snapshot": archive.snapshot,
        "committed": f"{archive.committed:%Y-%m-%dT%H:%M:%SZ}",
        "clock_behind_s": max(round((archive.committed - datetime.now(UTC)).total_seconds(), 3), 0.0),
        "dtype": archive.dtype.name,
        "depths": archive.geometry.depths,
        "source": archive.source,
        "labels": [asdict(version) for version in label_versions(archive.root)],
        "lumisections": sum(run["lumisections"] for run in runs),
        "runs": runs,
        "feeds": feeds,
    }
