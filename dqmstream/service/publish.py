"""Archived runs sent to Kafka, as the settings describe it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dqmstream.errors import ArchiveError, InputError
from dqmstream.lumisection import LUMISECTION_S
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive


def publish_runs(
    settings: Settings,
    runs: list[int] | None,
    rate: float | None,
    realtime: bool,
    partitions: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Publish archived runs in the order of their arrival.

    runs: None for all. rate: lumisections a second, None for as fast as possible. partitions: create the topic with so many;
    None: it exists.
    """
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


def _listed(runs: list[int]) -> str:
    if not runs:
        raise InputError("the archive holds no run: import or consume some first")
    return ", ".join(map(str, runs[:5])) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
