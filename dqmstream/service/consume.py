"""The service: ingest in this process, the learner in a child process.

They share the archive alone. A learner that is slow, hangs or dies never slows ingest: it is restarted a bounded number of
times, and runs that are not learnt yet wait in the archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from dqmstream.errors import UNFILED, BrokerError, DataLostError, InputError, OutOfMemoryError, StateError
from dqmstream.learners.evaluation.history import read_history, results
from dqmstream.learners.evaluation.prequential import prequential_results
from dqmstream.learners.registry import resolve
from dqmstream.lumisection import Geometry
from dqmstream.service.learn import check_learner
from dqmstream.service.learner_process import LearnerProcess
from dqmstream.service.stopping import Stop, stop_on_signals
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.copies import copy_id
from dqmstream.storage.maintenance.expiry import Expiry
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.counts import IngestCounts
from dqmstream.streaming.dead_letters import DeadLetters
from dqmstream.streaming.feed import Feed
from dqmstream.streaming.ingest import Ingest

log = structlog.get_logger("dqmstream.service.consume")

POLL_S = 0.2
SHARED_OUT_S = 15.0
"""Time in which a consumer group assigns its partitions, beyond the session timeout of a worker that died."""


@dataclass(frozen=True)
class Consumed:
    """Result of one call of `consume`."""

    counts: IngestCounts
    waiting: int
    """Number of offsets that were read but not filed within `drain_s`; they will be read again."""
    partitions: int
    """Number of partitions that this worker held at the end."""
    seconds: float
    learner_exit_code: int | None
    """Exit code of a learner that was given up, or made no progress since it failed; None if all went well."""
    learner_error: str | None
    """Why the learner failed, in words."""

    @property
    def exit_code(self) -> int:
        """Exit code of the whole command. Data that are not filed take precedence over runs that are not learnt."""
        if self.waiting:
            return UNFILED
        if self.learner_exit_code is None:
            return 0
        return self.learner_exit_code if self.learner_exit_code > 0 else StateError.exit_code  # a signal has no code

    def as_json(self) -> dict[str, Any]:
        return asdict(self.counts) | {
            "waiting": self.waiting,
            "partitions": self.partitions,
            "seconds": round(self.seconds, 3),
            "learner_exit_code": self.learner_exit_code,
            "learner_error": self.learner_error,
            "exit_code": self.exit_code,
        }


def consume_topic(
    settings: Settings,
    *,
    learn: bool,
    until_idle_s: float | None,
    progress: Callable[[IngestCounts, dict[str, Any]], None],
) -> dict[str, Any]:
    """Run the service on a Kafka topic until SIGTERM or SIGINT. All checks are made before the archive is created."""
    from dqmstream.streaming import kafka

    bootstrap, topic = settings.need("bootstrap"), settings.need("topic")
    kafka.check_topic(bootstrap, topic)
    kafka.check_codecs(bootstrap, topic)
    dead_letters = kafka.KafkaDeadLetters(bootstrap, settings.dead_letter_topic or f"{topic}.deadletter")
    archive = _open_or_create(settings)
    if learn:
        check_learner(archive, settings)
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


def _open_or_create(settings: Settings) -> Archive:
    """The archive that the settings name; made from them if there is none."""
    return Archive.open_or_create(
        settings.need("archive"),
        geometry=Geometry(settings.depths) if settings.depths else None,
        dtype=settings.dtype,
        source=settings.source,
    )


def consumed_result(archive: Archive, settings: Settings, done: Consumed, learn: bool) -> dict[str, Any]:
    """What `consume --json` prints. snapshot and next_offsets are null if messages that were read could not be filed."""
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


def consume(
    archive: Archive,
    feed: Feed,
    dead_letters: DeadLetters,
    settings: Settings,
    *,
    topic: str,
    learn: bool = True,
    until_idle_s: float | None = None,
    stop: Stop | None = None,
    progress: Callable[[IngestCounts, dict[str, Any]], None] = lambda counts, learner: None,
) -> Consumed:
    """File the messages of a feed while a child process learns, until `stop` is set or nothing is left to do.

    until_idle_s: end after so many seconds without a message, once all runs are learnt; runs without a stop message then count
    as complete. progress: called about five times a second with the counts and the learner's status. Snapshots that are not
    needed any more are dropped every hour (`storage.maintenance.expiry`). At the end everything that was read is filed, unless
    the disk takes longer than `drain_s`, and the child is ended.

    Raises DataLostError and BrokerError as the feed does; InputError if the archive has no source, none is given and the
    messages do not agree on one, or if many messages came and none is of the archive's source; OutOfMemoryError if no memory is
    left. In all cases only offsets that are filed are passed.
    """
    stop = stop or Stop()
    began = time.monotonic()
    idle_s = settings.idle_s if until_idle_s is None else min(settings.idle_s, until_idle_s)
    learner = LearnerProcess(archive, settings.state_path, settings, idle_s) if learn else None
    ingest = Ingest(
        feed,
        ArchiveWriter(archive),
        dead_letters,
        topic=topic,
        max_rows=settings.max_rows,
        flush_s=settings.flush_s,
        crc_required=settings.crc_required,
        max_events=settings.max_events,
        source=settings.source or "",
        accept_others=settings.accept_others,
    )
    learner_code: int | None = None
    expiry = Expiry(archive.path, settings.keep_snapshots_s)
    told = 0.0
    empty = _Empty(default_group(archive) if settings.group is None else settings.group, settings.session_timeout_ms / 1000)
    try:
        while not stop.is_set():
            idle = ingest.step(POLL_S) == 0 and until_idle_s is not None and ingest.idle_s >= until_idle_s
            if idle and ingest.drain(POLL_S):
                archive = archive.refresh()
                if learner is None or learner.caught_up(archive.snapshot):
                    break
                stop.wait(POLL_S)  # an in-process feed that has ended returns at once
            if learner is not None:
                learner.watch()
            empty.look(ingest.partitions)
            if time.monotonic() - told >= POLL_S:
                told = time.monotonic()
                progress(ingest.counts, learner.status if learner else {})
        if until_idle_s is not None and not ingest.counts.messages:
            empty.tell(ingest.partitions)
        if _drained(ingest, settings):
            progress(ingest.counts, learner.status if learner else {})
            if question := ingest.open_question:
                raise InputError(question)
    except (DataLostError, BrokerError) as ended:
        # Messages that were read before the feed ended may exist nowhere else.
        _drained(ingest, settings, last=isinstance(ended, DataLostError))
        raise
    except MemoryError as lack:
        raise OutOfMemoryError(
            f"no memory was left to read on{f' ({lack})' if str(lack) else ''}: no offset was passed that is not filed. Give "
            "this process more memory, or set DQMSTREAM_MAX_ROWS lower, and start again: it goes on there"
        ) from lack
    finally:
        ingest.close()
        expiry.close()
        if learner is not None:
            learner_code = learner.stop()
        feed.close()
        dead_letters.close()
    error = learner.error if learner is not None and learner_code is not None else None
    return Consumed(ingest.counts, ingest.waiting, ingest.partitions, time.monotonic() - began, learner_code, error)


def _drained(ingest: Ingest, settings: Settings, *, last: bool = False) -> bool:
    """File what was read; returns whether this took at most `drain_s`. last: the feed will not deliver it again."""
    if ingest.drain(settings.drain_s, last=last):
        return True
    log.error("the disk was too slow to file everything in time: the rest will be read again", messages=ingest.waiting)
    return False


def default_group(archive: Archive) -> str:
    """Name of the consumer group of the workers of this archive.

    A copy of the archive has another group: in the same one it would take partitions away from the original. Offsets are
    stored in the archive, so changing the name of a group loses nothing.
    """
    return f"dqmstream-{archive.archive_id}-{copy_id(archive.path)}"


class _Empty:
    """Warns that this worker holds no partition; again only after it has held one."""

    def __init__(self, group: str, session_s: float) -> None:
        self._group = group
        self._patience_s = session_s + SHARED_OUT_S
        self._since = time.monotonic()
        self._told = False

    def look(self, partitions: int) -> None:
        """Note how many partitions the worker holds now; warn if it has held none for too long."""
        if partitions:
            self._since, self._told = time.monotonic(), False
        elif time.monotonic() - self._since > self._patience_s:
            self.tell(partitions)

    def tell(self, partitions: int) -> None:
        if not partitions and not self._told:
            self._told = True
            log.warning(
                "this worker holds no partition: the others of its group hold all, and it files nothing. "
                "If it should fill an archive of its own, give it another --group",
                group=self._group,
            )
